"""Class sums and what is stored: which rows a version's sums are of, and how what is erased is taken out of them.

The sums of a version are those of the stored features of all training rows (not held out) of the tasks that it has
learnt, which were neither replaced nor forgotten by its `sums_seq`; a row that another trunk made is mapped to the
version's and coded again. So sums can be computed again from what is stored, and what died since can be subtracted.

Protects: sums and head are changed together with the note of how far they are changed, in one commit, and before the
rows that this needs are deleted (`purge` waits for it).
"""

# n rows   D trunk feature

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.drift import DriftMap, IdentityMap, compose
from stream_odml.learn.feature_codes import FeatureCodes, FeatureFormat, encode
from stream_odml.learn.lift import Lift
from stream_odml.store.artifacts import HEAD, SUMS, ArtifactRef
from stream_odml.store.select import Ints, death_seqs, farness, select_rows, split_rows
from stream_odml.store.select import encode as coded_names
from stream_odml.store.store import Store
from stream_odml.store.tables import values
from stream_odml.store.trunks import in_one_trunk
from stream_odml.store.versions import Version
from stream_odml.store.writer import Writer

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class TrainingRows:
    """Rows of the gallery that training may use, with their features in one version's trunk: read when asked for."""

    store: Store
    version_id: str
    rows: Ints
    """Numbers into the rows of all files, ascending."""
    meta: pa.Table
    """Their columns."""
    files: Sequence[tuple[str, int]]
    """Of the whole gallery: name and number of rows."""
    onward: DriftMap = field(default_factory=IdentityMap)
    """From the version's trunk to one that is not committed yet: what follows is as that one will have it."""

    def __len__(self) -> int:
        return len(self.rows)

    def under(self, onward: DriftMap) -> TrainingRows:
        """Return the same rows as the trunk behind `onward` will have them."""
        return replace(self, onward=onward)

    def without(self, shard_ids: Collection[str]) -> TrainingRows:
        """Return those of other shards."""
        keep = ~_named(self.meta, shard_ids)
        return replace(self, rows=self.rows[keep], meta=self.meta.filter(pa.array(keep)))

    @property
    def places(self) -> set[tuple[str, int]]:
        """(shard, row) of each."""
        return set(values(self.meta, "shard_id", "row"))

    @cached_property
    def keys(self) -> list[str]:
        """Item ids; each is there once."""
        return list(self.meta["item_id"].to_pylist())

    @cached_property
    def classes(self) -> list[str]:
        """The class of each."""
        return list(self.meta["class_name"].cast(pa.string()).to_pylist())

    def features(self, some: Ints | None = None) -> FeatureCodes:
        """Return the features of all, or of `some` rows (numbers, ascending). FileNotFoundError where files
        were merged and vacuumed since: `Store.again`."""
        chosen = np.arange(len(self.rows)) if some is None else np.asarray(some, np.int64)
        parts = [part for _, part in self._parts(chosen)]
        return FeatureCodes.joined(parts or [encode(np.empty((0, self.store.dim), np.float32), self._format)])

    def sums(self, lift: Lift) -> ClassSums:
        """Return class sums of all of them, file by file. Errors as above."""
        sums = ClassSums.empty(lift)
        for rows, part in self._parts(np.arange(len(self.rows))):
            sums = sums.plus(ClassSums.of(lift, part, [self.classes[row] for row in rows.tolist()]))
        return sums

    @property
    def _format(self) -> FeatureFormat:
        assert self.store.row_codes is not None, "class sums are of a root in exact form"
        return self.store.row_codes

    def _parts(self, chosen: Ints) -> Iterator[tuple[Ints, FeatureCodes]]:
        """Yield (which of the rows, their features), one file after the other."""
        made_by, names = (
            coded_names(self.meta["version"]) if len(self.meta) else (chosen, pa.array([], pa.string()))
        )
        maps = dict(self.store.mapper.into(self.store.tree, names.to_pylist(), self.version_id))
        drifts = [compose([maps[name], self.onward]) for name in names.to_pylist()]
        parts = split_rows(self.rows[chosen], (length for _, length in self.files))
        start = 0
        for (path, _), rows in zip(self.files, parts, strict=True):
            if len(rows):
                mine = chosen[start : start + len(rows)]
                yield mine, in_one_trunk(self.store.features(path)[rows], made_by[mine], drifts)
                start += len(rows)


def task_rows(store: Store, version_id: str, shard_ids: Collection[str]) -> TrainingRows:
    """Return living training rows of shards (a task's), as `version_id` has them: what a fast stage from it
    adds to sums."""
    meta, files = _metadata(store)
    picked = select_rows(meta, store.ledger, store.tree, version_id).picked
    rows = picked[_is_training(meta, picked, shard_ids)]
    return TrainingRows(store, version_id, rows, meta.take(pa.array(rows)), files)


def learnt_rows(store: Store, version_id: str) -> TrainingRows:
    """Return living training rows of all tasks that a version has learnt: what its sums are of, but for
    what died since."""
    return task_rows(store, version_id, _shards_learnt(store, version_id))


def sums_now(store: Store, version_id: str) -> ClassSums:
    """Return the sums of a version without what was replaced or forgotten up to `store.ledger.seq`. Raises
    ValueError for a version without sums."""
    version = store.tree.get(version_id)
    sums = store.sums_of(version_id)
    if sums is None:
        raise ValueError(f"version {version_id} has no class sums, only {sorted(version.artifacts)}")
    return store.again(lambda: _without_dead(_Dead.found(store), version, sums))


def forget_in_sums(writer: Writer) -> int:
    """Take what was replaced or forgotten out of the sums of all kept versions, and solve their heads again with the
    settings that they note; how many versions were noted.

    Call it before rows are purged: those that sums still count are not deleted without it.
    """
    # Under the lock: what died by then and what is noted have to be of one picture of the ledger.
    with writer.exclusive() as store:
        kept = store.tree.kept_with(SUMS)

        def corrected() -> dict[str, dict[str, bytes | ArtifactRef]]:
            dead = _Dead.found(store)
            if not len(dead.rows) or dead.deaths.max() <= min(v.sums_seq for v in kept):
                return {}
            return {v.version_id: _corrected(dead, v) for v in kept}

        data = store.again(corrected) if kept else {}
        if data:
            writer.replace_forgotten(data, store.ledger.seq)
        return len(data)


def _corrected(dead: _Dead, version: Version) -> dict[str, bytes | ArtifactRef]:
    before = dead.store.sums_of(version.version_id)
    assert before is not None
    after = _without_dead(dead, version, before)
    if after is before:
        return {SUMS: version.artifacts[SUMS]}
    head = dead.store.head_of(version.version_id).again(after)
    return {SUMS: after.to_bytes(), HEAD: head.to_bytes()}


def _without_dead(dead: _Dead, version: Version, sums: ClassSums) -> ClassSums:
    gone = dead.owed(version)
    if not len(gone):
        return sums
    try:
        return sums.minus(gone.sums(sums.lift))
    except ValueError:
        # Sums that are not of what is stored cannot be corrected, but what has to be erased must leave them.
        log.exception("sums of version %s are computed again from what is stored", version.version_id)
        return learnt_rows(dead.store, version.version_id).sums(sums.lift)


@dataclass(frozen=True, eq=False)
class _Dead:
    """Training rows that were replaced or forgotten and are stored still."""

    store: Store
    meta: pa.Table
    """Of the whole gallery."""
    files: Sequence[tuple[str, int]]
    rows: Ints
    deaths: Ints

    @classmethod
    def found(cls, store: Store) -> _Dead:
        """Return what is dead in the store as it was last refreshed."""
        meta, files = _metadata(store)
        selection = select_rows(meta, store.ledger, store.tree, store.tree.head)
        rows = np.sort(np.concatenate([selection.replaced, selection.forgotten]))
        return cls(store, meta, files, rows, death_seqs(meta, store.ledger, store.tree, rows))

    def owed(self, version: Version) -> TrainingRows:
        """Return those that are in the sums of a version: as for living ones, the row nearest to it of each landing."""
        tree = self.store.tree
        learnt = _is_training(self.meta, self.rows, _shards_learnt(self.store, version.version_id))
        rows = self.rows[learnt & (self.deaths > version.sums_seq)]
        some = self.meta.take(pa.array(rows))
        if len(rows):
            shards, _ = coded_names(some["shard_id"])
            order = np.lexsort(
                (farness(some["version"], tree, version.version_id), some["row"].to_numpy(), shards)
            )
            places = np.stack([shards, some["row"].to_numpy()])[:, order]
            first = np.append(True, (places[:, 1:] != places[:, :-1]).any(axis=0))
            rows = np.sort(rows[order[first]])
            some = self.meta.take(pa.array(rows))
        return TrainingRows(self.store, version.version_id, rows, some, self.files)


def _metadata(store: Store) -> tuple[pa.Table, list[tuple[str, int]]]:
    blocks = store.blocks
    meta = pa.concat_tables(blocks.values()).unify_dictionaries() if blocks else store.metadata()
    return meta, [(path, len(block)) for path, block in blocks.items()]


def _is_training(meta: pa.Table, rows: Ints, shard_ids: Collection[str]) -> NDArray[np.bool_]:
    some = meta.select(["shard_id", "held_out", "class_name"]).take(pa.array(rows))
    # Nobody has said yet what an item without a class is of.
    said = pc.not_equal(some["class_name"].cast(pa.string()), "").to_numpy().astype(bool)
    return np.asarray(_named(some, shard_ids) & said & ~some["held_out"].to_numpy().astype(bool))


def _named(meta: pa.Table, shard_ids: Collection[str]) -> NDArray[np.bool_]:
    named = pc.is_in(meta["shard_id"].cast(pa.string()), value_set=pa.array(sorted(shard_ids), pa.string()))
    return np.asarray(named.to_numpy(), bool)


def _shards_learnt(store: Store, version_id: str) -> frozenset[str]:
    return frozenset(store.ledger.shards_of(store.tree.learnt(version_id) & store.ledger.tasks.keys()))
