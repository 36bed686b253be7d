"""An immutable, searchable picture of the gallery in the head's space: what a replica serves, swapped by reference.

Protects: every vector in it, and every query, is in one space, that of ``version``; what was replaced or forgotten is
not found.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.learn.drift import DriftMap
from stream_odml.search.applying import map_in_place
from stream_odml.search.clusters import Clusters
from stream_odml.search.columns import Columns, Growable
from stream_odml.search.exact import Indices, Mask, merge_top
from stream_odml.search.filters import Filters
from stream_odml.search.halves import NEVER, ROWS, Halves, worth_from
from stream_odml.search.hits import Hit, grouped, hits_of
from stream_odml.search.search import (
    ExactSearcher,
    IndexSearcher,
    SearchSettings,
    build_searcher,
)
from stream_odml.search.vectors import Vectors, normalise_rows
from stream_odml.store.ledger import LedgerState
from stream_odml.store.mapping import Mapper
from stream_odml.store.select import encode, select_rows
from stream_odml.store.sequence import sequence_of
from stream_odml.store.store import Store
from stream_odml.store.tables import FloatArray
from stream_odml.store.versions import VersionTree

DEAD_KEPT = 256
"""Rows that were replaced or forgotten since the last compaction, which a search looks past."""
FRESH_KEPT = 1024
TRIES = 5


@dataclass(frozen=True, eq=False)
class GallerySnapshot:
    """Made by :meth:`load`; the next one by :meth:`refreshed`. Safe for many threads; refresh from one at a time."""

    version: str
    dim: int
    tree: VersionTree
    ledger: LedgerState
    columns: Columns
    main: IndexSearcher | None
    """Covers the first ``main.n`` items; None when all are searched exactly."""
    fresh: Growable
    """Normalised vectors of the items behind ``main``."""
    halves: Halves | None
    """Of ``fresh``, where they make batches faster."""
    dead: Indices
    """Rows that do not count any more, ascending."""
    settings: SearchSettings
    mapper: Mapper
    txns: frozenset[str]

    @staticmethod
    def load(
        store: Store, settings: SearchSettings | None = None, before: "GallerySnapshot | None" = None
    ) -> "GallerySnapshot":
        """Everything, from the store as it was last refreshed. Raises NoVersionYet before the root is committed.

        The clusters of ``before`` are kept where they still serve, whatever space it was in.
        """
        settings = settings or SearchSettings()
        for last in range(TRIES):
            try:
                return _load(store, settings, before)
            except (
                FileNotFoundError
            ):  # merged and vacuumed since the store looked: it will see the new files now
                if last == TRIES - 1:
                    raise
                store.forget_seen()
                store.refresh()
        raise AssertionError("unreachable")

    def refreshed(self, store: Store) -> "GallerySnapshot":
        """The picture after ``store.refresh()``; this one if nothing came. Tier-1 appends add a few rows behind."""
        if store.tree is self.tree and store.ledger is self.ledger:
            return self
        same_space = store.tree.moves[-1:] == self.tree.moves[-1:] and len(store.tree.versions) == len(
            self.tree.versions
        )
        try:
            appended = _appended(self, store) if same_space else None
        except FileNotFoundError:
            appended = None
        return appended or GallerySnapshot.load(store, self.settings, self)

    @property
    def sequence(self) -> int:
        """Grows with every commit that it knows: for reading one's own writes, compared by ``has_reached``."""
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
        """For each of ``vectors`` [n, d] (raw or normalised, made by model ``version``) the ``k`` most similar items.

        With ``group_by="class"``: the ``group_size`` best of each of the ``k`` nearest classes. Raises UnknownVersion,
        and ValueError for another dimension, a value that is not finite, or k < 1.
        """
        if k < 1 or group_size < 1:
            raise ValueError(f"k is {k} and group_size {group_size}; both must be at least 1")
        queries = self.queries(Vectors(vectors, version))
        mask = filters.mask(self.columns) if filters else None
        if group_by is not None:
            return grouped(self, queries, k, group_size, mask)
        return hits_of(self.columns, *self.nearest(queries, k, mask))

    def queries(self, vectors: Vectors) -> FloatArray:
        """Vectors of any version, mapped to :attr:`version` and normalised: float32 [n, d]."""
        array = vectors.array
        if array.shape[1] != self.dim:
            raise ValueError(
                f"vectors have dimension {array.shape[1]}, this gallery has {self.dim}; use its model"
            )
        mapped = (
            array.copy() if vectors.version == self.version else self.map_from(vectors.version).apply(array)
        )
        mapped = np.ascontiguousarray(mapped, dtype=np.float32)
        if mapped is array:
            mapped = mapped.copy()
        normalise_rows(mapped)
        return mapped

    def map_from(self, version: str) -> DriftMap:
        """The drift map from ``version``'s space into this one. Raises UnknownVersion."""
        return self.mapper.get(self.tree, version, self.version)

    def nearest(self, queries: FloatArray, k: int, mask: Mask | None = None) -> tuple[FloatArray, Indices]:
        """Cosines and row numbers [nq, k] for :meth:`queries`; -1 where there are fewer than k."""
        n, split = self.columns.n, self.main.n if self.main else 0
        if mask is not None:
            mask = mask.copy()
            mask[self.dead] = False
        wide = k if mask is not None else k + len(self.dead)
        parts = []
        if self.main is not None:
            parts.append(self.main.search(queries, wide, None if mask is None else mask[:split]))
        if n > split or not parts:
            exact = ExactSearcher(self.fresh.view(n - split), self.halves)
            scores, rows = exact.search(queries, wide, None if mask is None else mask[split:])
            parts.append((scores, np.where(rows < 0, -1, rows + split)))
        scores, rows = merge_top(parts, wide)
        if mask is None and len(self.dead):
            order = np.argsort(np.isin(rows, self.dead), axis=1, kind="stable")[:, :k]
            alive = np.take_along_axis(rows, order, axis=1)
            scores, rows = (
                np.take_along_axis(scores, order, axis=1),
                np.where(np.isin(alive, self.dead), -1, alive),
            )
        return scores, rows

    def vectors(self, rows: Indices) -> FloatArray:
        """Normalised vectors float32 [len(rows), d] in this version's space."""
        split = self.main.n if self.main else 0
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        late = rows >= split
        out[late] = self.fresh.view(self.columns.n - split)[rows[late] - split]
        if self.main is not None and not late.all():
            out[~late] = self.main.vectors(rows[~late])
        return out

    def rows(self, filters: Filters | None = None) -> Indices:
        """Row numbers of the items that count (and pass)."""
        mask = filters.mask(self.columns) if filters else np.ones(self.columns.n, dtype=bool)
        mask[self.dead] = False
        return np.flatnonzero(mask)

    def find(self, item_id: str) -> int | None:
        """The row number of an item, or None."""
        found = np.setdiff1d(np.flatnonzero(self.columns.item_ids.within([item_id])), self.dead)
        return int(found[-1]) if len(found) else None

    def item(self, row: int, score: float = 1.0) -> Hit:
        """The item at a row."""
        return hits_of(self.columns, np.array([[score]], dtype=np.float32), np.array([[row]]))[0][0]

    @property
    def searcher(self) -> str:
        """What searches: exact, or the kind of the main segment."""
        return self.main.kind if self.main else "exact"

    @property
    def recall(self) -> float:
        """Of the searcher against exact search, measured when it was built."""
        return self.main.recall if self.main else 1.0

    def memory(self) -> dict[str, int]:
        """Bytes by what holds them."""
        main = self.main.nbytes if self.main else 0
        halves = self.halves.nbytes if self.halves else 0
        return {
            "vectors": self.fresh.nbytes,
            "halves": halves,
            "index": main,
            "columns": self.columns.nbytes,
        }


def _load(store: Store, settings: SearchSettings, before: GallerySnapshot | None) -> GallerySnapshot:
    head = store.tree.head
    blocks = store.blocks
    meta = store.metadata()
    picked = select_rows(meta, store.ledger, store.tree, head).picked
    vectors = Growable.empty(len(picked), store.dim, np.float32)
    rows = meta.take(pa.array(picked))
    start = 0
    for path, block in blocks.items():
        first, last = np.searchsorted(picked, (start, start + len(block)))
        if last > first:
            vectors.view(len(picked))[first:last] = store.vectors(path)[picked[first:last] - start]
        start += len(block)
    _map_rows(store, rows["version"], head, vectors.view(len(picked)))
    columns = Columns().grown(rows.drop_columns(["txn", "row"]))
    loaded = GallerySnapshot(
        version=head,
        dim=store.dim,
        tree=store.tree,
        ledger=store.ledger,
        columns=columns,
        main=None,
        fresh=vectors,
        halves=None,
        dead=np.empty(0, dtype=np.int64),
        settings=settings,
        mapper=store.mapper,
        txns=store.visible_txns(),
    )
    return _merged(loaded, before)


def _map_rows(store: Store, versions: pa.ChunkedArray, head: str, vectors: FloatArray) -> None:
    """Raw vectors of several versions into normalised ones of one, in place."""
    codes, names = encode(versions)
    made_by = names.to_pylist()
    map_in_place(store.mapper.into(store.tree, made_by, head), made_by, codes, vectors)
    normalise_rows(vectors)


def _appended(old: GallerySnapshot, store: Store) -> GallerySnapshot | None:
    """``old`` with new tier-1 rows behind it, and what they replace or a new tombstone covers marked dead."""
    txns = store.visible_txns()
    new = [(path, block.filter(mask), mask) for path, block, mask in store.rows_of(txns - old.txns)]
    columns, fresh, dead = old.columns, old.fresh, _forgotten_since(old, store.ledger)
    n = old.columns.n
    if new:
        meta = pa.concat_tables([rows for _, rows, _ in new]).unify_dictionaries()
        dead |= old.columns.item_ids.within(meta["item_id"].unique())
        picked = select_rows(meta, store.ledger, store.tree, old.version).picked
        raw = np.concatenate(
            [store.vectors(path)[mask.to_numpy(zero_copy_only=False)] for path, _, mask in new]
        )
        rows = meta.take(pa.array(picked))
        mapped = raw[picked]
        if len(picked):
            _map_rows(store, rows["version"], old.version, mapped)
        fresh = old.fresh.grown(n - (old.main.n if old.main else 0), mapped)
        columns = old.columns.grown(rows.drop_columns(["txn", "row"]))
    dead[old.dead] = True
    changed = replace(
        old,
        tree=store.tree,
        ledger=store.ledger,
        columns=columns,
        fresh=fresh,
        dead=np.flatnonzero(dead),
        txns=txns,
    )
    if len(changed.dead) <= DEAD_KEPT:
        return _merged(changed)
    return None if changed.main else _without_dead(changed)


def _forgotten_since(old: GallerySnapshot, ledger: LedgerState) -> Mask:
    columns = old.columns
    dead = np.zeros(columns.n, dtype=bool)
    for stone in ledger.tombstones[len(old.ledger.tombstones) :]:
        if stone.kind == "item":
            covered = columns.item_ids.within([stone.name])
        else:
            column = "class_name" if stone.kind == "class" else "shard_id"
            covered = columns.array(column) == columns.names[column].numbers.get(stone.name, -1)
        landed = [ledger.shards[name].landed_seq for name in columns.names["shard_id"].names]
        if landed:
            dead |= covered & (np.array(landed)[columns.array("shard_id")] < stone.seq)
    return dead


def _without_dead(full: GallerySnapshot) -> GallerySnapshot:
    alive = full.rows()
    fresh = Growable.empty(0, full.dim, np.float32).grown(0, full.fresh.view(full.columns.n)[alive])
    columns, none = full.columns.taken(alive), np.empty(0, dtype=np.int64)
    return _merged(replace(full, columns=columns, fresh=fresh, halves=None, dead=none))


def _clusters(before: GallerySnapshot | None, columns: Columns) -> Clusters | None:
    """What the main segment of ``before`` says of the rows of ``columns``, item by item."""
    if before is None or before.main is None or before.main.kind != "ivf":
        return None
    held = before.columns.item_ids.column.slice(0, before.main.n)
    rows = pc.fill_null(pc.index_in(columns.item_ids.column, value_set=held.combine_chunks()), -1)
    return before.main.clusters(rows.to_numpy().astype(np.int64))


def _merged(snapshot: GallerySnapshot, before: GallerySnapshot | None = None) -> GallerySnapshot:
    """With the fresh rows in the main segment, if they have become many (or the whole too large for exact search)."""
    main, n = snapshot.main, snapshot.columns.n
    fresh = snapshot.fresh.view(n - (main.n if main else 0))
    if main is None:
        built = build_searcher(fresh, snapshot.settings, _clusters(before, snapshot.columns))
        if isinstance(built, ExactSearcher):
            return replace(snapshot, halves=_halves(snapshot.halves, fresh))
        main = built
    elif len(fresh) <= max(FRESH_KEPT, snapshot.settings.fresh_share * main.n):
        return snapshot
    else:
        main = main.grown(fresh)
    return replace(snapshot, main=main, fresh=Growable.empty(0, snapshot.dim, np.float32), halves=None)


def _halves(held: Halves | None, rows: FloatArray) -> Halves | None:
    dim = rows.shape[1]
    if len(rows) < ROWS or worth_from(dim) == NEVER:
        return None
    held = held or Halves.empty(dim)
    return held.grown(rows[held.n :])
