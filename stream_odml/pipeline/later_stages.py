"""Stages that improve what is learnt already: the slow one, which moves the trunk, and items embedded anew by it.

A fast stage has published every task within seconds. What comes later costs images and hours, goes on beside further
fast stages, and is published only if it serves more.

Protects: what is due is a function of ledger and tree, so a driver that begins again goes on with the same attempt;
each task moves a trunk, and each item is embedded anew by it, at most once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import monotonic as _now
from time import time as _clock
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.boundary import is_trainable
from stream_odml.learn.settings import TrunkRule
from stream_odml.learn.trunk_gap import is_worth_moving
from stream_odml.pipeline.messages import StageOrder, shard_ref
from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import Attempt, AttemptKind
from stream_odml.store.store import Store
from stream_odml.store.version_metrics import VersionMetrics
from stream_odml.store.versions import Version, VersionTree
from stream_odml.store.writer import Writer

RENEWED_AT_ONCE = 4096
"""Items of a stage that embeds anew, at least; in all at most RENEWALS stages for each trunk, as each is a version."""
RENEWALS = 8
MOST_GONE = 0.1
"""Share of the items without an image up to which the trunk is held as if all had one."""


_MAPPED: WeakKeyDictionary[Store, tuple[int, list[str]]] = WeakKeyDictionary()
"""What `mapped_shards` found last, and the `seq` of the tree that it is of."""


@dataclass(frozen=True)
class LaterRules:
    """What of a stream's configuration decides about stages that improve what is learnt."""

    trunk: TrunkRule = "frozen"
    has_held_out: bool = False
    renew_per_s: float = 0.0

    @staticmethod
    def of(config: StreamConfig) -> LaterRules:
        """Read them from a configuration. Other heads have no such stages: their trunk moves in every stage. Vectors
        that come in place of images have no trunk."""
        if not config.solves_head or config.model.takes_vectors:
            return LaterRules()
        held_out = config.evaluation.held_out > 0
        return LaterRules(config.learning.trunk, held_out, config.store.renew_per_s)

    @property
    def may_move(self) -> bool:
        """Whether a stage may ever move the trunk after the first task."""
        return self.trunk == "distilled" or (self.trunk == "auto" and self.has_held_out)


class LaterStages:
    """Not thread-safe: the driver calls it under its lock."""

    def __init__(self, writer: Writer, rules: LaterRules) -> None:
        self._writer, self._rules = writer, rules
        self._renew_not_before = 0.0
        self._handed_at: dict[str, float] = {}

    def next_order(self) -> StageOrder | None:
        """Return the stage to go on with or to begin; its attempt is ledgered before this returns."""
        store = self._writer.store
        if self._rules == LaterRules() or not store.tree.moves:
            return None
        attempt = self._under_way()
        if attempt is None:
            attempt = self._begin("slow", self._due_tasks()) or self._begin_renewal()
        return None if attempt is None else self._order(attempt)

    @property
    def moves_trunk(self) -> bool:
        """Whether a slow stage is under way, behind which no other waits that can do without images."""
        attempt = self._under_way()
        return attempt is not None and attempt.kind == "slow"

    def _under_way(self) -> Attempt | None:
        store = self._writer.store
        found = (store.open_attempt(a.version_id) for a in store.ledger.later_attempts)
        return next((attempt for attempt in found if attempt is not None), None)

    def _begin(
        self, kind: AttemptKind, tasks: Sequence[str], shards: Sequence[str] = (), worst: bool = False
    ) -> Attempt | None:
        if not tasks:
            return None
        version_id = self._writer.begin_later_attempt(kind, tasks, shards, worst)
        return self._writer.store.open_attempt(version_id)

    def _due_tasks(self) -> Sequence[str]:
        store = self._writer.store
        waiting = waiting_tasks(store.ledger, store.tree)
        if not is_trainable(store.ledger.trainable(*waiting)):
            return ()  # single images of a class were learnt by the head; a trunk moves with the next ones
        if self._rules.trunk == "distilled":
            return waiting
        if not self._rules.may_move:
            return ()
        head = VersionMetrics.read(store.tree.get(store.tree.head).metrics)
        return waiting if waiting and is_worth_moving(head.trunk) else ()

    def _begin_renewal(self) -> Attempt | None:
        store, rate = self._writer.store, self._rules.renew_per_s
        if not rate or _now() < self._renew_not_before:
            return None
        shards, mapped, tried = store.ledger.shards, mapped_shards(store), _tried(store)
        begun, worst_done = _tried(store, worst=True), _worst_embedded(store)
        worst_of = {shard: len(shards[shard].worst_rows) for shard in mapped}
        # The worst items of all shards, then what is left of each: a shard is read twice, an image decoded once.
        sizes = {shard: count for shard, count in worst_of.items() if count and shard not in begun}
        worst = bool(sizes)
        if not worst:
            embedded = {shard: worst_of[shard] * (shard in worst_done) for shard in mapped}
            sizes = {s: shards[s].rows - embedded[s] for s in mapped if s not in tried}
        if not sizes:
            return None
        at_once = max(RENEWED_AT_ONCE, sum(shards[shard].rows for shard in mapped) // RENEWALS)
        chosen: list[str] = []
        items = 0
        for shard, count in sizes.items():
            if chosen and items + count > at_once:
                break
            chosen.append(shard)
            items += count
        self._renew_not_before = _now() + items / rate
        # Its version names a task that is learnt; of the shards any has one.
        return self._begin("renew", [shards[chosen[0]].task or ""], chosen, worst)

    def _order(self, attempt: Attempt) -> StageOrder:
        store = self._writer.store
        ledger, tree = store.ledger, store.tree
        shards = attempt.shards or tuple(s for task in attempt.tasks for s in ledger.tasks[task].shard_ids)
        return StageOrder(
            task=attempt.task,
            version_id=attempt.version_id,
            parent=attempt.parent,
            depth=tree.get(tree.head).depth + 1,
            shards=tuple(shard_ref(ledger.shards[shard]) for shard in shards),
            handed_at=self._handed_at.setdefault(attempt.version_id, _clock()),
            kind="slow" if attempt.kind == "slow" else "renew",
            tasks=attempt.tasks,
            worst=attempt.worst,
            renewed=attempt.kind == "slow" and self._will_renew(),
        )

    def _will_renew(self) -> bool:
        """Whether nearly all that is stored can be embedded anew, going by what could be under the trunk of now."""
        follow = renewal(self._writer.store)
        return bool(self._rules.renew_per_s) and follow.get("gone", 0) <= MOST_GONE * sum(follow.values())


def trained_tasks(ledger: LedgerState, tree: VersionTree, version_id: str) -> frozenset[str]:
    """Return tasks by whose images the trunk of a version was trained, in any stage of its lineage."""
    found: set[str] = set()
    for before, after in pairwise(tree.lineage(version_id)):
        if not tree.same_trunk(before, after):
            found.update(_tasks_of(ledger, tree.get(after)))
    return frozenset(found)


def waiting_tasks(ledger: LedgerState, tree: VersionTree) -> list[str]:
    """Return learnt tasks that no stage of the trunk has taken up yet, in the order in which they were
    learnt. Those of a stage that was refused are done with."""
    head = tree.head
    done = set(trained_tasks(ledger, tree, head))
    lineage = tree.lineage(head)
    for attempt in ledger.later_attempts:
        if attempt.kind == "slow" and attempt.refused is not None and attempt.parent in lineage:
            done.update(attempt.tasks)
    learnt = (tree.get(v).task for v in lineage)
    return [task for task in dict.fromkeys(learnt) if task and task not in done]


def mapped_shards(store: Store) -> list[str]:
    """Return learnt shards whose features another trunk than the head's made, worst first: by the error
    that the maps on the way from that trunk are known to make on classes that they were not fitted to, with that of
    the map by which they were taken over from another model, then in landing order."""
    seq, found = _MAPPED.get(store, (-2, []))
    # What a version learnt or embedded never changes, and this is asked every second.
    if seq != store.tree.seq:
        found = _mapped_shards(store)
        _MAPPED[store] = store.tree.seq, found
    return found


def _mapped_shards(store: Store) -> list[str]:
    ledger, tree = store.ledger, store.tree
    lineage = tree.lineage(tree.head)
    made_by: dict[str, str] = {}
    taken_over: dict[str, float] = {}
    for task in dict.fromkeys(tree.get(v).task for v in lineage):
        for shard in ledger.tasks[task].shard_ids if task else ():
            made_by[shard] = str(ledger.shards[shard].counts.get("version", lineage[0]))
            taken_over[shard] = ledger.shards[shard].mapped_error
    for version_id in lineage[1:]:
        for shard in _rows_of(ledger, tree, version_id):
            made_by[shard], taken_over[shard] = version_id, 0.0
    by_version = _errors(tree, lineage)
    errors = {shard: by_version.get(made, 0.0) + taken_over[shard] for shard, made in made_by.items()}
    found = [shard for shard, error in errors.items() if error > 0 and ledger.shards[shard].rows]
    return sorted(found, key=lambda shard: (-errors[shard], ledger.shards[shard].landed_seq))


def renewal(store: Store) -> dict[str, int]:
    """Return items of learnt shards by how they follow the head's trunk: ``exact``, ``mapped`` and to be embedded anew,
    or ``gone``, as their images could not be read for it. Empty while no map moves any of them."""
    mapped = mapped_shards(store) if store.tree.moves and store.form == "exact" else []
    if not mapped and not any(a.kind == "renew" for a in store.ledger.later_attempts):
        return {}
    shards, tried, worst_done = store.ledger.shards, _tried(store), _worst_embedded(store)
    found = {"mapped": 0, "gone": 0}
    for shard in mapped:
        embedded = len(shards[shard].worst_rows) if shard in worst_done else 0
        found["gone" if shard in tried else "mapped"] += shards[shard].rows - embedded
    learnt = store.tree.learnt()
    total = sum(shards[s].rows for task in learnt for s in store.ledger.tasks[task].shard_ids)
    return {**found, "exact": total - sum(found.values())}


def rows_to_embed(store: Store, order: StageOrder, rows: pa.Table) -> pa.Table:
    """Return those of the living rows of an order's shards that it is to embed: of one that embeds anew, the worst, or
    those that no other has embedded as such."""
    if order.kind != "renew":
        return rows
    keep_n, numbers_n = np.ones(len(rows), bool), rows["row"].to_numpy()
    names, done = rows["shard_id"].cast(pa.string()), _worst_embedded(store)
    for shard in (ref.shard_id for ref in order.shards):
        if order.worst or shard in done:
            own_n = pc.equal(names, shard).to_numpy()
            is_worst_n = np.isin(numbers_n[own_n], store.ledger.shards[shard].worst_rows)
            keep_n[own_n] = is_worst_n == order.worst
    return rows.filter(pa.array(keep_n))


def _errors(tree: VersionTree, lineage: Sequence[str]) -> dict[str, float]:
    """By version of the lineage, the sum of what the maps from it to the head miss; above 0 where there are any."""
    errors, so_far = {lineage[-1]: 0.0}, 0.0
    for before, after in list(pairwise(lineage))[::-1]:
        if not tree.same_trunk(before, after):
            so_far += max(VersionMetrics.read(tree.get(after).metrics).drift.get("forward_error", 0.0), 1e-12)
        errors[before] = so_far
    return errors


def _rows_of(ledger: LedgerState, tree: VersionTree, version_id: str) -> Iterable[str]:
    """Shards whose items a version embedded."""
    version = tree.get(version_id)
    attempt = _later_attempt(ledger, version_id)
    if attempt is not None and attempt.shards:
        return () if attempt.worst else attempt.shards
    moved = version.parent is not None and not tree.same_trunk(version.parent, version_id)
    if not moved and VersionMetrics.read(version.metrics).kind != "embed":
        return ()
    return (s for task in _tasks_of(ledger, version) for s in ledger.tasks[task].shard_ids)


def _tasks_of(ledger: LedgerState, version: Version) -> Sequence[str]:
    attempt = _later_attempt(ledger, version.version_id)
    if attempt is not None:
        return attempt.tasks
    return (version.task,) if version.task else ()


def _later_attempt(ledger: LedgerState, version_id: str) -> Attempt | None:
    return next((a for a in ledger.later_attempts if a.version_id == version_id), None)


def _tried(store: Store, worst: bool = False) -> set[str]:
    """Shards that were embedded anew by the head's trunk, or could not be; with `worst`, if only the worst items."""
    return {
        shard
        for attempt in _renewals(store)
        if worst or not attempt.worst
        if attempt.refused is not None or attempt.version_id in store.tree.committed
        for shard in attempt.shards
    }


def _worst_embedded(store: Store) -> set[str]:
    """Shards whose worst items the head's trunk has embedded."""
    committed = store.tree.committed
    return {s for a in _renewals(store) if a.worst and a.version_id in committed for s in a.shards}


def _renewals(store: Store) -> Iterator[Attempt]:
    """Attempts to embed anew by the head's trunk."""
    tree = store.tree
    for attempt in store.ledger.later_attempts:
        if attempt.kind == "renew" and tree.same_trunk(attempt.parent, tree.head):
            yield attempt
