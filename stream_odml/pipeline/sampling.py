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

from stream_odml.store.blocks import compact
from stream_odml.store.select import encode, forgotten_rows, select_rows, split_rows
from stream_odml.store.store import META, Store

Mask = NDArray[np.bool_]
AT_ONCE = 65_536
"""Rows that wait to be drawn from together."""
WIDEN_FACTOR = 4
"""How many times as many items of a class are drawn where too few of those before live."""


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
    `classes`), so many a class, drawn by `seed` from those that live. What a later shard has replaced shows only among
    all rows of an item: a class that this leaves short is drawn from more widely, and it alone."""
    items: set[str] = set()
    blocks: dict[str, pa.Table] = {}
    keep, wide, looked = np.zeros(0, bool), per_class, classes
    while shards:
        drawn = _candidates(store, where & _of("shard_id", shards) & _of("class_name", looked), wide, seed)
        items |= set(drawn["item_id"].to_pylist())
        # All that an item's row competes with: it may have come again in another shard, under another class.
        named = _of("item_id", items)
        blocks = {path: compact(part) for path, part in store.scan(META, named)} if items else {}
        if not blocks:
            break
        meta = pa.concat_tables(list(blocks.values())).unify_dictionaries()
        keep = np.zeros(len(meta), bool)
        keep[select_rows(meta, store.ledger, store.tree, parent).picked] = True
        keep &= _is_in(meta["shard_id"], shards)
        if classes is not None:
            keep &= _is_in(meta["class_name"], classes)
        living = meta.filter(pa.array(keep))
        # Classes of which `wide` items were drawn, perhaps not all, and fewer than `per_class` of them live.
        looked = _classes_at(drawn, wide - 1, seed) - _classes_at(living, per_class - 1, seed)
        if not looked:
            keep[np.flatnonzero(keep)] = _ranks(living, seed) < per_class
            break
        wide *= WIDEN_FACTOR
    parts = [store.gallery_schema.empty_table()]
    picked = split_rows(np.flatnonzero(keep), map(len, blocks.values()))
    for path, mine in zip(blocks, picked, strict=True):
        if len(mine):
            parts.append(store.table("gallery").read(path, None, _of("item_id", items)).take(pa.array(mine)))
    return pa.concat_tables(parts)


def _of(column: str, names: Collection[str] | None) -> pc.Expression:
    return pc.scalar(True) if names is None else pc.field(column).isin(pa.array(sorted(names), pa.string()))


def _candidates(store: Store, where: pc.Expression, per_class: int, seed: int) -> pa.Table:
    """Return rows that may be in the sample; beside them AT_ONCE rows and those of one file are in memory."""
    kept = compact(store.gallery_schema.empty_table().select(META))
    waiting: list[pa.Table] = []
    for _, part in store.scan(META, where):
        waiting.append(without_dead(store, compact(part)))
        if sum(map(len, waiting)) > max(AT_ONCE, len(kept)):  # seldom, where there are many small files
            kept, waiting = _reduced([kept, *waiting], per_class, seed), []
    return _reduced([kept, *waiting], per_class, seed)


def without_dead(store: Store, rows: pa.Table) -> pa.Table:
    """Return rows without what is not committed or is under a tombstone, as far as it can be seen of a row alone: drawn
    first, it would leave nothing of a class of which only a part is erased."""
    rows = rows.filter(pa.array(_is_in(rows["txn"], store.visible_txns())))
    dead = forgotten_rows(rows, store.ledger)
    return rows.filter(pa.array(~np.isin(np.arange(len(rows)), dead))) if len(dead) else rows


def _reduced(blocks: list[pa.Table], per_class: int, seed: int) -> pa.Table:
    rows = pa.concat_tables(blocks).unify_dictionaries()
    return rows.filter(pa.array(_ranks(rows, seed) < per_class))


def _classes_at(rows: pa.Table, rank: int, seed: int) -> set[str]:
    """Return classes that have an item of this rank."""
    return set(rows["class_name"].filter(pa.array(_ranks(rows, seed) == rank)).to_pylist())


def _is_in(column: pa.ChunkedArray, names: Collection[str]) -> Mask:
    codes, values = encode(column)
    wanted = np.array([value in names for value in values.to_pylist()], bool)
    return wanted[codes] if len(codes) else np.zeros(0, bool)


def _ranks(meta: pa.Table, seed: int) -> NDArray[np.int64]:
    """Return the place of each row's item among those of its class, by its draw; an item's rows stay together."""
    if not len(meta):
        return np.zeros(0, np.int64)
    classes, _ = encode(meta["class_name"])
    numbers = draw(meta["item_id"].to_pylist(), seed)
    order = np.lexsort((numbers, classes))
    first_of_class = np.diff(classes[order], prepend=-1) != 0
    new_item = first_of_class | (np.diff(numbers[order].astype(np.int64), prepend=-1) != 0)
    items = np.cumsum(new_item)
    ranks = np.empty(len(meta), np.int64)
    ranks[order] = items - np.maximum.accumulate(np.where(first_of_class, items, 0))
    return ranks
