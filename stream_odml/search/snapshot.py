"""An immutable, searchable picture of the gallery in the head's space: what a replica serves, swapped by reference.

Protects: every vector in it, and every query, is in one space, that of `version`; what was replaced or
forgotten is not found.
"""

import contextlib
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa

from stream_odml.search.columns import Columns, Growable
from stream_odml.search.exact import Indices, Mask, merge_top
from stream_odml.search.feature_cache import FeatureCache
from stream_odml.search.filters import Filters
from stream_odml.search.grouping import grouped
from stream_odml.search.hits import Hit, hits_of
from stream_odml.search.parts import Part
from stream_odml.search.search import IndexSearcher, SearchSettings
from stream_odml.search.segment import Segment
from stream_odml.search.space import Features, Made, Space
from stream_odml.search.vectors import Vectors
from stream_odml.store.ledger import LedgerState
from stream_odml.store.select import select_rows, split_rows
from stream_odml.store.sequence import sequence_of
from stream_odml.store.store import Store
from stream_odml.store.tables import FloatArray
from stream_odml.store.versions import VersionTree

MAX_DEAD_ROWS = 256
"""Rows that were replaced or forgotten since the last compaction, which a search looks past."""


@dataclass(frozen=True, eq=False)
class GallerySnapshot:
    """Made by `load`; the next one by `refreshed`. Safe for many threads; refresh from one at a time."""

    space: Space
    tree: VersionTree
    ledger: LedgerState
    columns: Columns
    parts: tuple[Part, ...]
    """The items, by the part of an embedding that they are compared with."""
    dead: Indices
    """Rows that do not count any more, ascending."""
    settings: SearchSettings
    txns: frozenset[str]
    cache: FeatureCache | None = None
    """Features of a root in exact form on this node's disk; None: they are read from the gallery's own files."""

    @staticmethod
    def load(
        store: Store,
        settings: SearchSettings | None = None,
        before: "GallerySnapshot | None" = None,
        cache: FeatureCache | None = None,
    ) -> "GallerySnapshot":
        """Return everything, from the store as it was last refreshed. Raises NoVersionYet before the root is committed.
        The clusters of `before` are kept where they still serve, whatever space it was in."""
        return store.again(lambda: _load(store, settings or SearchSettings(), before, cache))

    def refreshed(self, store: Store) -> "GallerySnapshot":
        """Return the picture after `store.refresh()`; this one if nothing came. What was indexed is added behind."""
        if self.cache is not None:
            self.cache.follow(store)
        if store.tree is self.tree and store.ledger is self.ledger:
            return self
        same_space = store.tree.moves[-1:] == self.tree.moves[-1:] and len(store.tree.versions) == len(
            self.tree.versions
        )
        with contextlib.suppress(FileNotFoundError):
            if same_space and (appended := _appended(self, store)) is not None:
                return appended
        return GallerySnapshot.load(store, self.settings, self, self.cache)

    @property
    def version(self) -> str:
        """In whose space it is."""
        return self.space.version

    @property
    def dim(self) -> int:
        """Length of a vector of `version`."""
        return self.space.dim

    def dim_of(self, version: str) -> int:
        """Return length of a vector that a version made; may read a file. Raises UnknownVersion."""
        self.tree.get(version)
        return self.space.dim_of(version)

    @property
    def sequence(self) -> int:
        """Grows with every commit that it knows: for reading one's own writes, compared by `has_reached`."""
        return sequence_of(self.ledger.seq, self.tree.seq)

    def __len__(self) -> int:
        return self.columns.n - len(self.dead)

    def search(
        self,
        vectors: FloatArray,
        version: str,
        k: int = 10,
        filters: Filters | None = None,
        group_by: Literal["class"] | None = None,
        group_size: int = 1,
    ) -> list[list[Hit]]:
        """Return for each of `vectors` [n, d] (raw or normalised, made by model `version`) the `k` most similar
        items. With `group_by="class"`: the `group_size` best of each of the `k` nearest classes. Raises
        UnknownVersion, and ValueError for another dimension, a value that is not finite, or k < 1."""
        if k < 1 or group_size < 1:
            raise ValueError(f"k is {k} and group_size {group_size}; both must be at least 1")
        if group_by is None and group_size != 1:
            raise ValueError(f'group_size {group_size} without group_by groups nothing; add group_by="class"')
        queries = self.space.queries(self.tree, Vectors(vectors, version))
        mask = filters.mask(self.columns) if filters else None
        k = min(k, max(1, self.columns.n))  # an index makes room for as many as it is asked for
        if group_by is not None:
            return grouped(self, queries, k, group_size, mask)
        return hits_of(self.columns, *self.nearest(queries, k, mask))

    def nearest(self, queries: FloatArray, k: int, mask: Mask | None = None) -> tuple[FloatArray, Indices]:
        """Return cosines and row numbers [nq, k] for `queries` of `space`; -1 where there are fewer than k."""
        if mask is not None:
            mask = mask.copy()
            mask[self.dead] = False
        wide = k if mask is not None else k + len(self.dead)
        found = []
        for part in self.parts:  # one of all items adds nothing to its segment
            source = part.segment if part.rows is None else part
            found.append(source.nearest(queries, wide, mask))
        scores, rows = merge_top(found, wide)
        if mask is None and len(self.dead):
            order = np.argsort(np.isin(rows, self.dead), axis=1, kind="stable")[:, :k]
            alive = np.take_along_axis(rows, order, axis=1)
            scores = np.take_along_axis(scores, order, axis=1)
            rows = np.where(np.isin(alive, self.dead), -1, alive)
        return scores, rows

    def scores(self, queries: FloatArray, rows: Indices) -> FloatArray:
        """Return what `nearest` would say of these rows, each of which counts: [nq, len(rows)]."""
        out = np.empty((len(queries), len(rows)), np.float32)
        for part in self.parts:
            mine, place = part.places(rows)
            out[:, mine] = part.scored(part.own(queries) @ part.segment.vectors(place).T)
        return out

    def vectors(self, rows: Indices) -> FloatArray:
        """Return normalised vectors float32 [len(rows), dim] in this version's space. Of an item that is
        compared by a part of an embedding the rest is zero."""
        out = np.zeros((len(rows), self.dim), dtype=np.float32)
        for part in self.parts:
            mine, place = part.places(rows)
            out[mine, part.first : part.first + part.segment.dim] = part.segment.vectors(place)
        return out

    def rows(self, filters: Filters | None = None) -> Indices:
        """Return row numbers of the items that count (and pass)."""
        mask = filters.mask(self.columns) if filters else np.ones(self.columns.n, dtype=bool)
        mask[self.dead] = False
        return np.flatnonzero(mask)

    def find(self, item_id: str) -> int | None:
        """Return the row number of an item, or None."""
        found = np.setdiff1d(np.flatnonzero(self.columns.item_ids.within([item_id])), self.dead)
        return int(found[-1]) if len(found) else None

    def item(self, row: int, score: float = 1.0) -> Hit:
        """Return the item at a row."""
        return hits_of(self.columns, np.array([[score]], dtype=np.float32), np.array([[row]]))[0][0]

    @property
    def main(self) -> IndexSearcher | None:
        """The index of the largest part, if there is one."""
        return max((part.segment for part in self.parts), key=lambda segment: segment.n).main

    @property
    def multiplications(self) -> float:
        """Of one query, about."""
        return sum(part.segment.multiplications for part in self.parts)

    @property
    def searcher(self) -> str:
        """What searches: exact, or the kind of the main segment."""
        return self.main.kind if self.main else "exact"

    @property
    def recall(self) -> float:
        """Of the searcher against exact search, measured when it was built."""
        return min((part.segment.main.recall for part in self.parts if part.segment.main), default=1.0)

    def memory(self) -> dict[str, int]:
        """Return bytes by what holds them."""
        held = [part.segment.memory() for part in self.parts]
        parts = {name: sum(of[name] for of in held) for name in ("vectors", "halves", "index")}
        return {**parts, "columns": self.columns.nbytes}


def _load(
    store: Store, settings: SearchSettings, before: GallerySnapshot | None, cache: FeatureCache | None
) -> GallerySnapshot:
    head = store.tree.head
    blocks = store.blocks
    meta = store.metadata()
    picked = select_rows(meta, store.ledger, store.tree, head).picked
    rows = meta.take(pa.array(picked))
    parts = zip(blocks, split_rows(picked, map(len, blocks.values())), strict=True)
    files = [(path, mine) for path, mine in parts if len(mine)]
    if cache is not None:
        cache.follow(store)
    made, space = Space.of(store, head).vectors(store, files, rows, _features(cache))
    columns = Columns().grown(rows.drop_columns(["txn"]))
    return GallerySnapshot(
        space=space,
        tree=store.tree,
        ledger=store.ledger,
        columns=columns,
        parts=tuple(_part(number, part, settings, before, columns) for number, part in enumerate(made)),
        dead=np.empty(0, dtype=np.int64),
        settings=settings,
        txns=store.visible_txns(),
        cache=cache,
    )


def _features(cache: FeatureCache | None) -> Features:
    return Store.features if cache is None else cache.features


def _part(
    number: int, made: Made, settings: SearchSettings, before: GallerySnapshot | None, columns: Columns
) -> Part:
    # The part that was in its place: known items come first, and a head without a known part has one part alone.
    last = before.parts[min(number, len(before.parts) - 1)] if before else None
    same = last is not None and (last.rows is None) == (made.numbers is None)
    clusters = last.clusters(before.columns, columns, made.numbers) if before and last and same else None
    rows = None if made.numbers is None else Growable.of(made.numbers)
    return Part(Segment.of(made.vectors, settings, clusters), rows, made.first, made.scale, made.bonus)


def _appended(old: GallerySnapshot, store: Store) -> GallerySnapshot | None:
    """Return `old` with newly indexed rows behind it, and what they replace or a new tombstone covers marked dead."""
    txns = store.visible_txns()
    new = [(path, block.filter(mask), mask) for path, block, mask in store.rows_of(txns - old.txns)]
    columns, parts, dead = old.columns, old.parts, _forgotten_since(old, store.ledger)
    n, space = old.columns.n, old.space
    if new:
        meta = pa.concat_tables([rows for _, rows, _ in new]).unify_dictionaries()
        dead |= old.columns.item_ids.within(meta["item_id"].unique())
        picked = select_rows(meta, store.ledger, store.tree, old.version).picked
        rows = meta.take(pa.array(picked))
        picked_rows = split_rows(picked, (len(rows) for _, rows, _ in new))
        files = [
            (path, np.flatnonzero(mask.to_numpy(zero_copy_only=False))[mine])
            for (path, _, mask), mine in zip(new, picked_rows, strict=True)
        ]
        made, space = old.space.vectors(store, files, rows, _features(old.cache))
        parts = tuple(
            part.grown(
                more.vectors.rows, n + (np.arange(len(rows)) if more.numbers is None else more.numbers)
            )
            for part, more in zip(parts, made, strict=True)
        )
        columns = old.columns.grown(rows.drop_columns(["txn"]))
    dead[old.dead] = True
    changed = replace(
        old,
        space=space,
        tree=store.tree,
        ledger=store.ledger,
        columns=columns,
        parts=parts,
        dead=np.flatnonzero(dead),
        txns=txns,
    )
    if len(changed.dead) <= MAX_DEAD_ROWS:
        return changed
    return None if any(part.segment.main for part in parts) else _without_dead(changed)


def _forgotten_since(old: GallerySnapshot, ledger: LedgerState) -> Mask:
    columns = old.columns
    dead = np.zeros(columns.n, dtype=bool)
    for tombstone in ledger.tombstones[len(old.ledger.tombstones) :]:
        if tombstone.kind == "item":
            covered = columns.item_ids.within([tombstone.name])
        else:
            column = "class_name" if tombstone.kind == "class" else "shard_id"
            covered = columns.array(column) == columns.names[column].numbers.get(tombstone.name, -1)
        landed = [ledger.shards[name].landed_seq for name in columns.names["shard_id"].names]
        if landed:
            dead |= covered & (np.array(landed)[columns.array("shard_id")] < tombstone.seq)
    return dead


def _without_dead(full: GallerySnapshot) -> GallerySnapshot:
    alive = full.rows()
    parts = tuple(part.taken(alive) for part in full.parts)
    return replace(full, columns=full.columns.taken(alive), parts=parts, dead=np.empty(0, dtype=np.int64))
