"""A bounded sample of gallery rows for measuring: the same rows for the same seed, whatever files they lie in.

Protects: memory grows with the sample, never with the gallery; a row counts only if a reader would see it.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.store.select import encode, select_rows
from stream_odml.store.store import META, Store, compact

Mask = NDArray[np.bool_]
AT_ONCE = 65_536
"""Rows that wait to be drawn from together."""


def draw(names: Iterable[str], seed: int) -> NDArray[np.uint32]:
    """Return a number for each name that depends on the name and the seed alone."""
    return np.array([zlib.crc32(name.encode("utf-8", "replace"), seed) for name in names], np.uint32)


def drawn(names: Iterable[str], seed: int) -> list[str]:
    """Return names in the order of their draw: a longer list only adds to what a shorter one begins with."""
    known = sorted(set(names))
    return [known[i] for i in np.argsort(draw(known, seed), kind="stable")]


def rows_of_classes(
    store: Store,
    parent: str,
    shards: Sequence[str],
    where: pc.Expression,
    per_class: int,
    seed: int = 0,
    classes: Collection[str] | None = None,
) -> pa.Table:
    """Return gallery rows that pass `where`, as a reader of version `parent` sees them: of these shards (and
    `classes`), so many a class, drawn by `seed`."""
    items = _candidates(store, shards, where, per_class, seed, classes) if shards else []
    if not items:
        return store.gallery_schema.empty_table()
    # All that an item's row competes with: it may have come again in another shard, under another class.
    named = pc.field("item_id").isin(pa.array(items, pa.string()))
    blocks = {path: compact(part) for path, part in store.scan(META, named)}
    if not blocks:
        return store.gallery_schema.empty_table()
    meta = pa.concat_tables(list(blocks.values())).unify_dictionaries()
    keep = np.zeros(len(meta), bool)
    keep[select_rows(meta, store.ledger, store.tree, parent).picked] = True
    keep &= _of(meta, shards, classes)
    keep[np.flatnonzero(keep)] = _least(meta.filter(pa.array(keep)), per_class, seed)
    parts, start = [], 0
    for path, block in blocks.items():
        mine = keep[start : start + len(block)]
        start += len(block)
        if mine.any():
            parts.append(store.tables["gallery"].read(path, None, named).filter(pa.array(mine)))
    return pa.concat_tables(parts) if parts else store.gallery_schema.empty_table()


def _candidates(
    store: Store,
    shards: Sequence[str],
    where: pc.Expression,
    per_class: int,
    seed: int,
    classes: Collection[str] | None,
) -> list[str]:
    """Items that may be in the sample, file by file, so that AT_ONCE rows and a file's are in memory beside them."""
    kept = compact(store.gallery_schema.empty_table().select(META))
    waiting: list[pa.Table] = []
    for _, part in store.scan(META, where):
        block = compact(part)
        waiting.append(block.filter(pa.array(_of(block, shards, classes))))
        if sum(map(len, waiting)) > max(AT_ONCE, len(kept)):  # seldom, where there are many small files
            kept, waiting = _reduced([kept, *waiting], per_class, seed), []
    return sorted(set(_reduced([kept, *waiting], per_class, seed)["item_id"].to_pylist()))


def _reduced(blocks: list[pa.Table], per_class: int, seed: int) -> pa.Table:
    rows = pa.concat_tables(blocks).unify_dictionaries()
    return rows.filter(pa.array(_least(rows, per_class, seed)))


def _of(meta: pa.Table, shards: Sequence[str], classes: Collection[str] | None) -> Mask:
    mask = _is_in(meta["shard_id"], shards)
    return mask if classes is None else mask & _is_in(meta["class_name"], classes)


def _is_in(column: pa.ChunkedArray, names: Collection[str]) -> Mask:
    codes, values = encode(column)
    wanted = np.array([value in names for value in values.to_pylist()], bool)
    return wanted[codes] if len(codes) else np.zeros(0, bool)


def _least(meta: pa.Table, per_class: int, seed: int) -> Mask:
    """The rows of the `per_class` items of each class whose draw is least; an item's rows stay together."""
    if not len(meta):
        return np.zeros(0, bool)
    classes, _ = encode(meta["class_name"])
    numbers = draw(meta["item_id"].to_pylist(), seed)
    order = np.lexsort((numbers, classes))
    first_of_class = np.diff(classes[order], prepend=-1) != 0
    new_item = first_of_class | (np.diff(numbers[order].astype(np.int64), prepend=-1) != 0)
    items = np.cumsum(new_item)
    before = np.maximum.accumulate(np.where(first_of_class, items, 0))
    chosen = np.zeros(len(meta), bool)
    chosen[order] = items - before < per_class
    return chosen
