"""Changing the backbone: a root is taken over into another one whose model is new, each item by a map of its feature.

Protects: nothing is made before it is known what recall is to be expected; the old root is only read, so that going
back is serving it again. An item whose image the new stream indexes is exact from then on.
"""

# n pairs or items   D old feature   F new feature

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.config.stream import ConfigError, StreamConfig
from stream_odml.exchange.adopting import Report, adopt
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.source import ATTRIBUTES, CLASS, ID, VECTOR, Block, rows_at_once
from stream_odml.ingest.folder_scan import scan_folder
from stream_odml.ingest.reading import RawItem, read_folder, read_shard
from stream_odml.ingest.reasons import BadImage, BadShard, TransientReadError
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.cross_map import Choice, CrossMap, choose_cross_map, fit_cross_map
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.pipeline.messages import shard_ref
from stream_odml.storage.files import open_files
from stream_odml.store.select import encode as encode_names
from stream_odml.store.select import select_rows
from stream_odml.store.store import Store
from stream_odml.store.trunks import in_one_trunk

if TYPE_CHECKING:
    from stream_odml.learn.embedder import Embedder

Floats = NDArray[np.float32]
MAP = "upgrade/map.safetensors"
"""In the new root: the map by which its items were taken over."""
MAX_PAIRS = 4096
PER_SHARD = 256
"""Images read of one landed shard."""
EMBEDDED = 64
"""Images embedded at once."""


@dataclass(frozen=True, eq=False)
class Pairs:
    """Features of the same images by both models."""

    old_nD: Floats
    new_nF: Floats
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Expected:
    """Recall@1 to be expected of images of known classes, on pairs that the map was not fitted to."""

    staying: float
    """Under the old model."""
    mapped: float
    """Under the new one, before any item is embedded again."""
    reembedded: float
    """Under the new one, once all are."""
    pairs: int
    map_error: float
    """1 - cosine of a mapped feature to the true one, on classes held out of the fit."""
    items: int
    """That are taken over."""
    seconds_to_reembed: float
    """Of one process like this one, for all items."""

    def to_dict(self) -> dict[str, float]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class Upgrade:
    """What an upgrade will do: a source for `adopt`, and what is to be expected."""

    source: MappedRoot
    expected: Expected
    config: StreamConfig

    def adopt(self, progress: Callable[[int, int | None], None] = lambda done, total: None) -> Report:
        """Take the items over. After whatever ended it, the next one goes on, by the map that this one has kept."""
        open_files(self.config.root, self.config.storage_options).write(MAP, self.source.map_bytes)
        return adopt(self.source, self.config, progress=progress)


def prepare(root: str, config: StreamConfig, images: Path | None = None) -> Upgrade:
    """Read pairs, fit the map and measure what to expect; makes nothing. `config`: of the new stream, with a root of
    its own. Raises ConfigError, ExchangeError, ValueError."""
    from stream_odml.learn.embedder import build_embedder
    from stream_odml.models.loading import load_model

    old = Store.open(root, config.storage_options)
    if old.form != "exact":
        raise ExchangeError(
            f"{root} stores embeddings, not the features in front of them, which another model's head cannot be solved "
            "of; index its images into a new root"
        )
    if config.root.rstrip("/") == root.rstrip("/"):
        raise ConfigError(
            f"root: {config.root} is the root that is upgraded; name a new one, so that you can go back"
        )
    before = load_model(old, old.tree.head)
    if before.takes_vectors or config.model.takes_vectors:
        raise ExchangeError("a stream of vectors has no model to change; adopt the new vectors")
    pairs, seconds = _pairs(old, config, images, before, build_embedder(config.model, config.seed).eval())
    choice = choose_cross_map(pairs.old_nD, pairs.new_nF, pairs.classes, config.seed)
    fitted = fit_cross_map(pairs.old_nD, pairs.new_nF, pairs.classes, config.seed, choice)
    source = MappedRoot(old, _kept_map(config) or fitted)
    recalls = _recalls(pairs, config, choice)
    expected = Expected(*recalls, len(pairs.classes), fitted.error, source.count, seconds * source.count)
    return Upgrade(source, expected, config)


def _kept_map(config: StreamConfig) -> CrossMap | None:
    """The map of an upgrade that began: fitted again on another machine it might differ by rounding."""
    files = open_files(config.root, config.storage_options)
    return CrossMap.from_bytes(files.read(MAP)) if files.exists(MAP) else None


class MappedRoot:
    """The living items of a root in exact form, their features mapped into another model's: a `GallerySource`."""

    def __init__(self, store: Store, cross: CrossMap) -> None:
        self._store, self._cross = store, cross
        self.name = store.uri
        self.dim = len(cross.b_F)
        self.map_bytes = cross.to_bytes()
        said = f"{store.stream_id} {store.tree.seq} {store.ledger.seq} ".encode() + self.map_bytes
        self.identity = hashlib.sha256(said).hexdigest()[:16]

    @cached_property
    def _picked(self) -> tuple[pa.Table, list[tuple[str, NDArray[np.int64], int]]]:
        """Rows that count, and for each data file which of its rows they are, and the number of the first."""
        store = self._store
        meta = store.metadata()
        picked = select_rows(meta, store.ledger, store.tree, store.tree.head).picked
        files, start, first = [], 0, 0
        for path, block in store.blocks.items():
            a, b = np.searchsorted(picked, (start, start + len(block)))
            files.append((path, (picked[a:b] - start).astype(np.int64), first))
            start, first = start + len(block), first + int(b - a)
        return meta.take(pa.array(picked)), files

    @property
    def count(self) -> int:
        """Rows in all."""
        return len(self._picked[0])

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """See `GallerySource`; a cursor is a number of rows."""
        rows, files = self._picked
        size, begin = rows_at_once(self.dim), int(cursor or 0)
        made_by, names = encode_names(rows["version"])
        maps = dict(self._store.mapper.into(self._store.tree, names.to_pylist(), self._store.tree.head))
        drifts = [maps[name] for name in names.to_pylist()]
        for path, places, first in files:
            at = max(begin, first) - first
            stored = self._store.features(path) if at < len(places) else None
            while stored is not None and at < len(places):
                some = slice(first + at, first + min(at + size, len(places)))
                features = stored[places[at : at + size]]
                h_nD = in_one_trunk(features, made_by[some], drifts).decode()
                yield Block(self._table(rows.slice(some.start, len(h_nD)), h_nD), some.stop)
                at += size

    def _table(self, rows: pa.Table, h_nD: Floats) -> pa.Table:
        flat = pa.array(self._cross.apply(h_nD).reshape(-1))
        attributes = [list(json.loads(text or "{}").items()) for text in rows["attributes"].to_pylist()]
        return pa.table(
            {
                VECTOR: pa.FixedSizeListArray.from_arrays(flat, self.dim),
                ID: rows["item_id"].cast(pa.string()),
                CLASS: rows["class_name"].cast(pa.string()),
                ATTRIBUTES: pa.array(attributes, pa.map_(pa.string(), pa.string())),
            }
        )


def _pairs(
    old: Store, config: StreamConfig, images: Path | None, before: Embedder, after: Embedder
) -> tuple[Pairs, float]:
    """Embed the images at hand by both models; and the seconds that the new one takes for one image."""
    import time

    from stream_odml.ingest.decode import decode_image
    from stream_odml.learn.embedder import embed

    parts: list[tuple[Floats, Floats]] = []
    classes: list[str] = []
    seconds, found = 0.0, islice(_at_hand(old, images), MAX_PAIRS)
    while some := list(islice(found, EMBEDDED)):
        pixels: list[tuple[Any, Any]] = []
        for image, class_name in some:
            try:
                sizes = (before.spec.image_size, after.spec.image_size)
                pixels.append(tuple(decode_image(image, s, config.ingest.max_pixels) for s in sizes))  # type: ignore[arg-type]
            except BadImage:
                continue
            classes.append(class_name)
        if pixels:
            h_old = embed(before, np.stack([pair[0] for pair in pixels]))
            began = time.perf_counter()
            parts.append((h_old, embed(after, np.stack([pair[1] for pair in pixels]))))
            seconds += time.perf_counter() - began
    if not parts:
        raise ExchangeError(
            f"no image is at hand for {old.uri}: none is held out, and no landed shard can be read; give a folder of "
            "similar images, in class folders, with --images"
        )
    old_nD, new_nF = (np.concatenate(part) for part in zip(*parts, strict=True))
    return Pairs(old_nD, new_nF, tuple(classes)), seconds / len(classes)


def _at_hand(old: Store, images: Path | None) -> Iterator[tuple[bytes, str]]:
    """Images of the folder that was named, held-out ones of the root, then some of every landed shard that is kept."""
    if images is not None:
        rows = read_folder(images, scan_folder(images).files)
        yield from ((row.image, row.class_name) for row in rows if isinstance(row, RawItem) and row.image)
    for info in list(old.files.list("holdout")):
        table = pq.read_table(io.BytesIO(old.files.read(info.path)), columns=["image", "class_name"])
        yield from zip(table["image"].to_pylist(), table["class_name"].to_pylist(), strict=True)
    for shard in old.ledger.shards.values():
        try:
            some = list(islice(read_shard(shard_ref(shard)), PER_SHARD))
        except (BadShard, TransientReadError, KeyError, ValueError, OSError):
            continue  # it is not kept, or was no file: its items are mapped all the same
        yield from ((row.image, row.class_name) for row in some if isinstance(row, RawItem) and row.image)


def _recalls(pairs: Pairs, config: StreamConfig, choice: Choice) -> tuple[float, float, float]:
    """Recall@1 of staying, of mapped items and of embedded ones. One half of the images is the gallery, of which the
    map sees nothing and every head is solved; the other half asks; then in turn."""
    half = _halves(pairs.classes, config.seed)
    found = []
    for gallery in (half, ~half):
        classes = [name for name, here in zip(pairs.classes, gallery, strict=True) if here]
        asked = [name for name, here in zip(pairs.classes, gallery, strict=True) if not here]
        cross = fit_cross_map(pairs.old_nD[~gallery], pairs.new_nF[~gallery], asked, config.seed, choice)
        mapped = cross.apply(pairs.old_nD[gallery])
        found.append(
            [
                _recall(items, classes, queries, asked, config.model.dim)
                for items, queries in (
                    (pairs.old_nD[gallery], pairs.old_nD[~gallery]),
                    (mapped, pairs.new_nF[~gallery]),
                    (pairs.new_nF[gallery], pairs.new_nF[~gallery]),
                )
            ]
        )
    staying, moved, again = np.mean(found, axis=0).tolist()
    return staying, moved, again


def _halves(classes: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Every second image of each class, of a random order."""
    rng, half = np.random.default_rng(seed), np.zeros(len(classes), bool)
    names = np.array(classes, np.str_)
    for name in np.unique(names):
        half[rng.permutation(np.flatnonzero(names == name))[::2]] = True
    return half


def _recall(items: Floats, classes: Sequence[str], queries: Floats, asked: Sequence[str], dim: int) -> float:
    """Of queries whose class has an item the share whose nearest item is of it, under the head of the items."""
    coded = encode(items.astype(np.float32))
    head = solve_head(ClassSums.of(Lift(items.shape[1]), coded, list(classes)), HeadSettings(dim=dim))
    known = head.known_dim > 0
    gallery = head.known_part(coded) if known else head.new_part(coded)
    z = head.split(head.embed(queries))[0 if known else 1]
    nearest = (z @ gallery.T).argmax(axis=1)
    there = set(classes)
    hits = [classes[at] == name for at, name in zip(nearest, asked, strict=True) if name in there]
    return float(np.mean(hits)) if hits else float("nan")
