"""The living items of a root that is upgraded, shard by shard in the order in which they were indexed.

Protects: a place in that order stays one while the root goes on: what comes later is behind it. So an upgrade that is
repeated takes over what came since.
"""

# n items   D feature

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.exchange.expectation import OldItems
from stream_odml.ingest.reading import UNLABELLED
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.select import encode as encode_names
from stream_odml.store.select import select_rows
from stream_odml.store.store import Store
from stream_odml.store.trunks import in_one_trunk

Floats = NDArray[np.float32]
SAMPLED_AT_ONCE = 8192


class _Picked(NamedTuple):
    rows: pa.Table
    ends: dict[str, int]
    """By shard, in indexing order, the number of the row behind its last one."""
    paths: list[str]
    files: NDArray[np.int64]
    """By row, which of `paths` has its features,"""
    places: NDArray[np.int64]
    """and at which place."""


class StoredItems:
    """The living items of a root in exact form, with their features under the trunk of a version, by default of its
    head. Rows of a shard are in the order that they had in it."""

    def __init__(self, store: Store, version: str | None = None) -> None:
        self.store, self.version = store, version or store.tree.head
        self._last: tuple[str, FeatureCodes] | None = None

    @cached_property
    def _picked(self) -> _Picked:
        """Rows that count, ordered by shard, and where the features of each are."""
        store = self.store
        meta = store.metadata()
        picked = select_rows(meta, store.ledger, store.tree, self.version).picked
        paths = list(store.blocks)
        starts = np.cumsum([0, *(len(block) for block in store.blocks.values())])
        codes, names = encode_names(meta["shard_id"].take(pa.array(picked)))
        indexed = np.array([indexed_at(store.ledger.shards[name]) for name in names.to_pylist()], np.int64)
        by_indexing = np.argsort(indexed, kind="stable")
        place_of = np.empty(len(names), np.int64)
        place_of[by_indexing] = np.arange(len(names))
        order = np.lexsort((meta["row"].take(pa.array(picked)).to_numpy(), place_of[codes]))
        picked, shard_of = picked[order], place_of[codes][order]
        files = np.searchsorted(starts, picked, side="right") - 1
        shards = [names[int(at)].as_py() for at in by_indexing]
        ends = np.searchsorted(shard_of, np.arange(len(shards)), side="right").tolist()
        ended = dict(zip(shards, ends, strict=True))
        return _Picked(meta.take(pa.array(picked)), ended, paths, files, picked - starts[files])

    def __len__(self) -> int:
        return len(self._picked.rows)

    @cached_property
    def ids(self) -> frozenset[str]:
        """Ids of all."""
        return frozenset(self._picked.rows["item_id"].to_pylist())

    @property
    def shards(self) -> Iterator[tuple[ShardState, int, int]]:
        """All that were indexed, and which rows are of each: none of one whose items were all erased or replaced."""
        start, ends = 0, self._picked.ends
        for shard in sorted(self.store.ledger.shards.values(), key=indexed_at):
            if shard.shard_id in ends or shard.state in ("indexed", "assigned"):
                end = ends.get(shard.shard_id, start)
                yield shard, start, end
                start = end

    def numbers(self, start: int, end: int) -> NDArray[np.int64]:
        """Return the numbers that rows have in their shard, which rise."""
        return np.asarray(self._picked.rows["row"].slice(start, end - start).to_numpy(), np.int64)

    def rows_only(self, start: int, end: int) -> pa.Table:
        """Return some rows, without their features."""
        return self._picked.rows.slice(start, end - start)

    def rows(self, start: int, end: int) -> tuple[pa.Table, Floats]:
        """Return some rows and their features."""
        picked, rows = self._picked, self.rows_only(start, end)
        made_by, names = encode_names(rows["version"])
        maps = dict(self._maps)
        drifts = [maps[name] for name in names.to_pylist()]
        h_nD = np.empty((len(rows), self.store.dim), np.float32)
        for file in np.unique(picked.files[start:end]):
            mine = picked.files[start:end] == file
            features = self._features(picked.paths[file])[picked.places[start:end][mine]]
            h_nD[mine] = in_one_trunk(features, made_by[mine], drifts).decode()
        return rows, h_nD

    def blocks(self, begin: int, size: int) -> Iterator[tuple[pa.Table, Floats, int]]:
        """Yield rows from number `begin` on, at most `size` at once, their features, and the number that follows."""
        for start in range(begin, len(self), size):
            end = min(start + size, len(self))
            yield *self.rows(start, end), end

    @cached_property
    def _maps(self) -> list[tuple[str, DriftMap]]:
        versions = self._picked.rows["version"].combine_chunks().dictionary.to_pylist()
        return list(self.store.mapper.into(self.store.tree, versions, self.version))

    def _features(self, path: str) -> FeatureCodes:
        """Return the features of one file; the last one is kept, as the next shard is often in the same."""
        if self._last is None or self._last[0] != path:
            self._last = path, self.store.features(path)
        return self._last[1]

    def sample(self, most: int, seed: int) -> OldItems:
        """Return labelled items, at random where there are more than `most`."""
        labelled = pc.not_equal(self._picked.rows["class_name"].cast(pa.string()), UNLABELLED).to_numpy()
        chosen = np.flatnonzero(labelled)
        if len(chosen) > most:
            chosen = np.sort(np.random.default_rng(seed).choice(chosen, most, replace=False))
        parts, at = [], 0
        for _, h_nD, following in self.blocks(0, SAMPLED_AT_ONCE):
            parts.append(h_nD[chosen[(chosen >= at) & (chosen < following)] - at])
            at = following
        rows = self._picked.rows.take(pa.array(chosen))
        classes, ids = (np.array(rows[name].to_pylist(), np.str_) for name in ("class_name", "item_id"))
        return OldItems(np.concatenate(parts), classes, ids)


def indexed_at(shard: ShardState) -> int:
    """Return the row of the ledger that made a shard's items visible; -1 for none."""
    return -1 if shard.indexed_seq is None else shard.indexed_seq
