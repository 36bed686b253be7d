"""Class sums of items that wait for their task, kept by the process that will learn it: when the task closes, only its
last items are left to be summed.

Protects: sums are whole numbers, so what is kept is to the last bit what would be summed then; and it is used only for
rows that are, one by one, those it was made of. Losing it costs time alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.lift import Lift
from stream_odml.store.artifacts import STUDENT, ArtifactRef
from stream_odml.store.select import encode
from stream_odml.store.store import Store
from stream_odml.store.sums import TrainingRows, task_rows

FEW_ROWS = 1024
"""Rows under which nothing is summed ahead: the stage itself sums them in a fraction of a second."""
MAX_ROWS = 8192
"""Rows summed at a time, give or take a shard: an order that comes meanwhile waits for no more."""


@dataclass(frozen=True, eq=False)
class _Kept:
    lift: Lift
    trunk: ArtifactRef
    rows: Mapping[str, bytes]
    """Of each shard a digest of the rows that were summed; empty where it had none."""
    sums: ClassSums


class SumsAhead:
    """Sums of shards that wait, under one trunk. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: _Kept | None = None

    def add(self, store: Store, lift: Lift) -> int:
        """Sum some more of the rows that wait and that the head's trunk embedded. Return how many were summed."""
        head, ledger = store.tree.head, store.ledger
        trunk = store.tree.get(head).artifacts[STUDENT]
        due = {shard for task in ledger.due_tasks(store.tree.learnt()) for shard in task.shard_ids}
        kept = self._kept
        if (
            kept is None
            or (kept.lift, kept.trunk) != (lift, trunk)
            or kept.rows.keys() - ledger.indexed.keys() - due
        ):
            kept = _Kept(lift, trunk, {}, ClassSums.empty(lift))
        chosen, count = [], 0
        for shard_id in waiting_shards(store):
            if shard_id not in kept.rows and count < MAX_ROWS:
                chosen.append(shard_id)
                count += sum(ledger.shards[shard_id].counts.get("trainable", {}).values())
        if count < FEW_ROWS:
            return 0
        digests, sums = store.again(lambda: _summed(task_rows(store, head, chosen), lift))
        rows = {**kept.rows, **dict.fromkeys(chosen, b""), **digests}
        self._kept = _Kept(lift, trunk, rows, kept.sums.plus(sums))
        return sums.n_items

    def of(self, task: TrainingRows, lift: Lift) -> ClassSums:
        """Return the sums of a task's rows; what was kept of them is used up, of other shards it stays."""
        kept, self._kept = self._kept, None
        store, version = task.store, task.version_id
        if kept is None or (kept.lift, kept.trunk) != (lift, store.tree.get(version).artifacts[STUDENT]):
            return task.sums(lift)
        wanted = _digests(task)
        others = kept.rows.keys() - wanted.keys()
        left, of_left = _summed(task_rows(store, version, others), lift)
        known = {shard: digest for shard, digest in kept.rows.items() if digest}
        if any(known.get(shard, digest) != digest for shard, digest in {**wanted, **left}.items()) or (
            known.keys() - wanted.keys() - left.keys()
        ):
            # Items were forgotten or replaced since, which the sums that they are in cannot tell apart.
            return task.sums(lift)
        self._kept = _Kept(lift, kept.trunk, {shard: kept.rows[shard] for shard in others}, of_left)
        rest = task_rows(store, version, wanted.keys() - kept.rows.keys())
        return kept.sums.minus(of_left).plus(rest.sums(lift))


def waiting_shards(store: Store) -> list[str]:
    """Return the indexed shards without a task whose features the head's trunk made: what a fast stage will sum."""
    tree = store.tree
    made_by = {shard_id: str(shard.counts.get("version")) for shard_id, shard in store.ledger.indexed.items()}
    same = {v: v in tree.versions and tree.same_trunk(v, tree.head) for v in set(made_by.values())}
    return [shard_id for shard_id, version in made_by.items() if same[version]]


def _summed(rows: TrainingRows, lift: Lift) -> tuple[dict[str, bytes], ClassSums]:
    return _digests(rows), rows.sums(lift)


def _digests(rows: TrainingRows) -> dict[str, bytes]:
    """Return for each shard a digest of its rows: their places, and which version made each."""
    if not len(rows):
        return {}
    shards, shard_names = encode(rows.meta["shard_id"])
    versions, version_names = encode(rows.meta["version"])
    places = rows.meta["row"].to_numpy().astype(np.int64)
    names = version_names.to_pylist()
    order = np.lexsort((places, shards))
    starts = np.searchsorted(shards[order], np.arange(len(shard_names) + 1))
    found = {}
    for number, shard_id in enumerate(shard_names.to_pylist()):
        mine = order[starts[number] : starts[number + 1]]
        digest = hashlib.blake2b(places[mine].tobytes(), digest_size=16)
        digest.update("\0".join(names[code] for code in versions[mine]).encode())
        found[str(shard_id)] = digest.digest()
    return found
