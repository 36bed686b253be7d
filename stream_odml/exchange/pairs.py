"""Images at hand of a root that is upgraded, embedded by the model of now and by the new one.

Protects: each image and each item is a pair at most once, and an item that was erased or replaced is none, even if its
image still lies in a landed shard. An image of the folder that is an item of the root counts as that item: else it
would be asked for in a gallery that holds it, and recall expected too high. However large the folder, items of the
root have their half of the pairs: they are what will be asked about.
"""

# n pairs   D old feature   F new feature

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.exchange.errors import ExchangeError
from stream_odml.ingest.folder_scan import scan_folder
from stream_odml.ingest.reading import RawItem, read_folder, read_shard
from stream_odml.ingest.reasons import BadImage, BadShard, TransientReadError
from stream_odml.learn.feature_codes import encode
from stream_odml.pipeline.messages import shard_ref
from stream_odml.store.store import Store
from stream_odml.zero import unit_rows

if TYPE_CHECKING:
    from stream_odml.exchange.stored_items import StoredItems
    from stream_odml.learn.embedder import Embedder

Floats = NDArray[np.float32]
MAX_PAIRS = 4096
PER_SHARD = 256
"""Images of living items that are taken of one landed shard, at most,"""
LEAST_PER_SHARD = 16
"""and where there are many of them at least, though the last ones are then not reached."""
SAME = 0.02
"""Two directions that are nearer are of one image: rounding to 8 bits, and to batches, leaves some thousandths."""
PROJECTED = 32
"""Numbers by which features are compared first."""
COMPARED = 8192
Named = tuple[bytes, str, str]
"""An image, its class and its id, which is empty where it is not known."""
Decoded = tuple[tuple[str, str], Any, Any]
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


NO_PAIRS = Pairs(np.empty((0, 0), np.float32), np.empty((0, 0), np.float32), (), ())


def embed_pairs(
    stored: StoredItems,
    images: Path | None,
    before: Embedder,
    after: Embedder,
    max_pixels: int,
    seed: int = 0,
) -> tuple[Pairs, float]:
    """Embed images at hand by both models; also return the seconds that the new one takes for one image. `stored`:
    the items that count. Raises ExchangeError where there is no image."""
    old, both = stored.store, _Both(before, after, max_pixels)
    rest = both.decoded(_of_folder(images, seed))
    parts = [_known(both.embed(islice(rest, MAX_PAIRS // 2)), stored)]
    room = MAX_PAIRS - len(parts[0])
    given = set(parts[0].ids)
    items = both.decoded(_of_items(old, stored.ids, given, room))
    parts.append(both.embed(islice(items, room)))
    given |= set(parts[1].ids)
    parts.append(_known(both.embed(islice(rest, room - len(parts[1]))), stored, given))
    pairs = joined(parts)
    if not len(pairs):
        raise ExchangeError(
            f"no image is at hand for {old.uri}: none is held out, and no landed shard can be read; give a folder of "
            "similar images, in class folders, with --images"
        )
    return pairs, both.seconds / both.count


def joined(parts: Sequence[Pairs]) -> Pairs:
    """Return all pairs of some."""
    some = [part for part in parts if len(part)] or [NO_PAIRS]
    old_nD, new_nF = (np.concatenate([getattr(part, key) for part in some]) for key in ("old_nD", "new_nF"))
    classes, ids = (tuple(name for part in some for name in getattr(part, key)) for key in ("classes", "ids"))
    return Pairs(old_nD, new_nF, classes, ids)


class _Both:
    """Two models side by side."""

    def __init__(self, before: Embedder, after: Embedder, max_pixels: int) -> None:
        self._before, self._after, self._max_pixels = before, after, max_pixels
        self.seconds, self.count = 0.0, 0
        """What the new model took, and for how many images."""

    def decoded(self, at_hand: Iterator[Named]) -> Iterator[Decoded]:
        """Yield (class, id) and the pixels for either model, of images that can be decoded."""
        from stream_odml.ingest.decode import decode_image

        sizes = self._before.spec.image_size, self._after.spec.image_size
        for image, class_name, item_id in at_hand:
            try:
                of_old, of_new = (decode_image(image, size, self._max_pixels) for size in sizes)
            except BadImage:
                continue
            yield (class_name, item_id), of_old, of_new

    def embed(self, decoded: Iterator[Decoded]) -> Pairs:
        from stream_odml.learn.embedder import embed

        parts = []
        while some := list(islice(decoded, EMBEDDED)):
            classes, ids = zip(*(name for name, _, _ in some), strict=True)
            h_old = embed(self._before, np.stack([pixels for _, pixels, _ in some]))
            began = time.perf_counter()
            h_new = embed(self._after, np.stack([pixels for _, _, pixels in some]))
            self.seconds += time.perf_counter() - began
            self.count += len(some)
            parts.append(Pairs(h_old, h_new, classes, ids))
        return joined(parts)


def _known(found: Pairs, stored: StoredItems, given: AbstractSet[str] = frozenset()) -> Pairs:
    """Return images of a folder, with the ids of those that are items; none that is one of `given`, nor one twice."""
    if not len(found):
        return found
    ids, seen = same_items(found.old_nD, stored), set(given)
    keep = []
    for item in ids:
        keep.append(not item or item not in seen)
        seen.add(item)
    return replace(found, ids=tuple(ids)).at(np.array(keep, bool))


def same_items(h_nD: Floats, stored: StoredItems) -> list[str]:
    """Return for each feature the id of the item that stores it, but for rounding; empty where none does."""
    found, least_n = [""] * len(h_nD), np.full(len(h_nD), SAME, np.float32)
    # Of each feature a few numbers are compared first: of 4,096 images and a million items all would take minutes.
    directions_nD = np.asarray(unit_rows(encode(h_nD).decode()), np.float32)
    projection_Dk = np.random.default_rng(0).normal(size=(h_nD.shape[1], PROJECTED)).astype(np.float32)
    projected_nk = directions_nD @ projection_Dk
    for rows, stored_mD, _ in stored.blocks(0, COMPARED):
        there_mD = np.asarray(unit_rows(stored_mD), np.float32)
        there_mk = there_mD @ projection_Dk
        near_n = ((there_mk**2).sum(axis=1) - 2 * projected_nk @ there_mk.T).argmin(axis=1)
        off_n = np.linalg.norm(directions_nD - there_mD[near_n], axis=1)
        ids = rows["item_id"]
        for row in np.flatnonzero(off_n < least_n):
            found[row], least_n[row] = ids[int(near_n[row])].as_py(), off_n[row]
    return found


def _of_folder(images: Path | None, seed: int) -> Iterator[Named]:
    """Yield images of a folder in random order, as those of one class lie beside each other; each content once."""
    if images is None:
        return
    files, seen = scan_folder(images).files, set[bytes]()
    order = np.random.default_rng(seed).permutation(len(files))
    for row in read_folder(images, tuple(files[at] for at in order)):
        if isinstance(row, RawItem) and row.image and (digest := sha256(row.image).digest()) not in seen:
            seen.add(digest)
            yield row.image, row.class_name, ""


def _of_items(
    old: Store, living: AbstractSet[str], given: AbstractSet[str] = frozenset(), most: int = MAX_PAIRS
) -> Iterator[Named]:
    """Yield images of living items that are not `given`: held-out ones of the root, then some of each landed shard."""
    seen = set(given)
    for image, class_name, item_id in chain(_held_out(old), _landed(old, living, most)):
        if item_id in living and item_id not in seen:
            seen.add(item_id)
            yield image, class_name, item_id


def _held_out(old: Store) -> Iterator[Named]:
    for info in list(old.files.list("holdout")):
        columns = ["image", "class_name", "item_id"]
        table = pq.read_table(io.BytesIO(old.files.read(info.path)), columns=columns)
        yield from zip(*(table[name].to_pylist() for name in columns), strict=True)


def _landed(old: Store, living: AbstractSet[str], most: int) -> Iterator[Named]:
    """Yield some of every shard, few of each where there are many, so that the last ones take part."""
    shards = list(old.ledger.shards.values())
    each = min(PER_SHARD, max(LEAST_PER_SHARD, -(-most // max(1, len(shards)))))
    for shard in shards:
        try:
            rows = (row for row in read_shard(shard_ref(shard)) if isinstance(row, RawItem))
            some = list(islice((row for row in rows if row.item_id in living), each))
        except (BadShard, TransientReadError, KeyError, ValueError, OSError):
            continue  # it is not kept, or was no file: its items are mapped all the same
        for row in some:
            if row.image:
                yield row.image, row.class_name, row.item_id
