"""Images at hand of a root that is upgraded, embedded by the model of now and by the new one.

Protects: each item is a pair at most once, and one that was erased or replaced is none, even if its image still lies in
a landed shard.
"""

# n pairs   D old feature   F new feature

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.exchange.errors import ExchangeError
from stream_odml.ingest.folder_scan import scan_folder
from stream_odml.ingest.reading import RawItem, read_folder, read_shard
from stream_odml.ingest.reasons import BadImage, BadShard, TransientReadError
from stream_odml.pipeline.messages import shard_ref
from stream_odml.store.store import Store

if TYPE_CHECKING:
    from stream_odml.learn.embedder import Embedder

Floats = NDArray[np.float32]
MAX_PAIRS = 4096
PER_SHARD = 256
"""Images of living items that are taken of one landed shard."""
EMBEDDED = 64
"""Images embedded at once."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Features of the same images by both models."""

    old_nD: Floats
    new_nF: Floats
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    """Items of the root; empty of an image that is none."""

    def __len__(self) -> int:
        return len(self.classes)

    def at(self, rows: NDArray[Any]) -> Pairs:
        """Return some of them, by a mask or by numbers."""
        picked = np.arange(len(self))[rows]
        classes, ids = (tuple(names[row] for row in picked) for names in (self.classes, self.ids))
        return Pairs(self.old_nD[picked], self.new_nF[picked], classes, ids)


def embed_pairs(
    old: Store, living: Set[str], images: Path | None, before: Embedder, after: Embedder, max_pixels: int
) -> tuple[Pairs, float]:
    """Embed images at hand by both models; also return the seconds that the new one takes for one image. `living`: ids
    of the items that count. Raises ExchangeError where there is no image."""
    from stream_odml.learn.embedder import embed

    parts: list[tuple[Floats, Floats]] = []
    known: list[tuple[str, str]] = []
    seconds, found = (
        0.0,
        islice(_decoded(_at_hand(old, living, images), before, after, max_pixels), MAX_PAIRS),
    )
    while some := list(islice(found, EMBEDDED)):
        known += [name for name, _, _ in some]
        h_old = embed(before, np.stack([pixels for _, pixels, _ in some]))
        began = time.perf_counter()
        parts.append((h_old, embed(after, np.stack([pixels for _, _, pixels in some]))))
        seconds += time.perf_counter() - began
    if not parts:
        raise ExchangeError(
            f"no image is at hand for {old.uri}: none is held out, and no landed shard can be read; give a folder of "
            "similar images, in class folders, with --images"
        )
    old_nD, new_nF = (np.concatenate(part) for part in zip(*parts, strict=True))
    classes, ids = zip(*known, strict=True)
    return Pairs(old_nD, new_nF, classes, ids), seconds / len(known)


def _decoded(
    at_hand: Iterator[tuple[bytes, str, str]], before: Embedder, after: Embedder, max_pixels: int
) -> Iterator[tuple[tuple[str, str], Any, Any]]:
    """(class, id) and the pixels for either model, of images that can be decoded."""
    from stream_odml.ingest.decode import decode_image

    sizes = before.spec.image_size, after.spec.image_size
    for image, class_name, item_id in at_hand:
        try:
            of_old, of_new = (decode_image(image, size, max_pixels) for size in sizes)
        except BadImage:
            continue
        yield (class_name, item_id), of_old, of_new


def _at_hand(old: Store, living: Set[str], images: Path | None) -> Iterator[tuple[bytes, str, str]]:
    """Images, classes and ids: of the folder that was named, held-out ones of the root, then some of every landed
    shard that is kept."""
    if images is not None:
        rows = read_folder(images, scan_folder(images).files)
        yield from ((row.image, row.class_name, "") for row in rows if isinstance(row, RawItem) and row.image)
    given: set[str] = set()
    for image, class_name, item_id in _of_items(old, living):
        if item_id in living and item_id not in given:
            given.add(item_id)
            yield image, class_name, item_id


def _of_items(old: Store, living: Set[str]) -> Iterator[tuple[bytes, str, str]]:
    for info in list(old.files.list("holdout")):
        columns = ["image", "class_name", "item_id"]
        table = pq.read_table(io.BytesIO(old.files.read(info.path)), columns=columns)
        yield from zip(*(table[name].to_pylist() for name in columns), strict=True)
    for shard in old.ledger.shards.values():
        try:
            rows = (row for row in read_shard(shard_ref(shard)) if isinstance(row, RawItem))
            some = list(islice((row for row in rows if row.item_id in living), PER_SHARD))
        except (BadShard, TransientReadError, KeyError, ValueError, OSError):
            continue  # it is not kept, or was no file: its items are mapped all the same
        for row in some:
            if row.image:
                yield row.image, row.class_name, row.item_id
