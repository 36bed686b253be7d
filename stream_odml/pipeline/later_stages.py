"""Stages that improve what is learnt already: the slow one, which moves the trunk, and items embedded anew by it.

A fast stage has published every task within seconds. What comes later costs images and hours, goes on beside further
fast stages, and is published only if it serves more, or will once all is embedded anew.

Protects: what is begun is in the ledger, so a driver that begins again goes on with the same attempt; each task moves a
trunk, and each item is embedded anew by it, at most once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from time import monotonic as _now
from weakref import WeakKeyDictionary

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.boundary import is_trainable
from stream_odml.ingest.shard import ShardRef
from stream_odml.learn.settings import TrunkRule
from stream_odml.learn.trunk_gap import is_tried_again, is_worth_moving
from stream_odml.pipeline.messages import StageOrder, shard_ref
from stream_odml.pipeline.sources import is_gone
from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import Attempt, ShardState
from stream_odml.store.store import Store
from stream_odml.store.version_metrics import VersionMetrics
from stream_odml.store.versions import Version, VersionTree
from stream_odml.store.writer import Writer

RENEWED_AT_ONCE = 4096
"""Items of a stage that embeds anew, at least; in all at most RENEWALS stages for each trunk, as each is a version."""
RENEWALS = 8
PROBED = 16
"""Shards of which is looked whether they are still there before a stage begins: of all that are learnt, and of those
that it is to learn from, though one of each task."""
MAX_GONE_SHARE = 0.1
"""Share of the items without an image up to which the trunk is held as if all had one; of a task's shards, up to which
it is learnt from."""


_MAPPED: WeakKeyDictionary[Store, tuple[int, list[str]]] = WeakKeyDictionary()
"""What `mapped_shards` found last, and the `seq` of the tree that it is of."""


@dataclass(frozen=True)
class LaterRules:
    """What of a stream's configuration decides about stages that improve what is learnt."""

    trunk: TrunkRule = "frozen"
    renew_per_s: float = 0.0
    shown: bool = False
    """Whether held-out images show what a trunk is worth."""
    is_gone: Callable[[ShardRef], bool] = lambda ref: False
    """Whether the images of a landed shard are seen to be no longer there."""

    @staticmethod
    def of(config: StreamConfig) -> LaterRules:
        """Read them from a configuration. Other heads have no such stages: their trunk moves in every stage. Vectors
        that come in place of images have no trunk."""
        if not config.solves_head or config.model.takes_vectors:
            return LaterRules()
        shown, trunk = config.evaluation.held_out > 0, config.learning.trunk
        moves = shown or trunk != "auto"
        rule: TrunkRule = trunk if moves else "frozen"
        return LaterRules(rule, config.store.renew_per_s, shown, partial(is_gone, config))

    @property
    def may_move(self) -> bool:
        """Whether a stage may ever move the trunk after the first task."""
        return self.trunk != "frozen"


class LaterStages:
    """Not thread-safe: the driver calls it under its lock."""

    def __init__(self, writer: Writer, rules: LaterRules) -> None:
        self._writer, self._rules = writer, rules
        self._renew_not_before = 0.0
        self._none_due_at = -1, -1
        self._gone = set[str]()
        """Tasks whose images were seen to be gone; looked at again by the driver that begins next."""

    def next_order(self) -> StageOrder | None:
        """Return the stage to go on with or to begin; its attempt is ledgered before this returns."""
        store = self._writer.store
        if not (self._rules.may_move or self._rules.renew_per_s) or not store.tree.moves:
            return None
        attempt = self._under_way()
        if attempt is None:
            attempt = self._begin_slow() or self._begin_renewal()
        return None if attempt is None else self._order(attempt)

    @property
    def moves_trunk(self) -> bool:
        """Whether a slow stage is under way, behind which no other waits that can do without images."""
        attempt = self._under_way()
        return attempt is not None and attempt.kind == "slow"

    def _under_way(self) -> Attempt | None:
        store = self._writer.store
        return next(filter(None, map(store.open_attempt, store.ledger.later_attempts)), None)

    def _begun(self, version_id: str) -> Attempt | None:
        return self._writer.store.open_attempt(version_id)

    def _begin_slow(self) -> Attempt | None:
        """Begin a stage of the trunk where one is due."""
        store = self._writer.store
        # What is due changes with these alone, and this is asked every second.
        state = store.ledger.seq, store.tree.seq
        if not self._rules.may_move or self._none_due_at == state:
            return None
        due = self._due_tasks()
        if not due:
            self._none_due_at = state
            return None
        return self._begun(self._writer.begin_later_attempt("slow", due, renewed=self._is_renewed()))

    def _due_tasks(self) -> list[str]:
        """Return the tasks that a stage of the trunk is to take up now, in the order in which they were learnt."""
        store = self._writer.store
        head = VersionMetrics.read(store.tree.get(store.tree.head).metrics)
        if self._rules.trunk != "distilled" and not is_worth_moving(head.trunk):
            return []
        # The floor compares what is served once all is embedded anew: before a move it has to be, too.
        if self._may_renew() and renewal(store).get("mapped"):
            return []
        tasks = waiting_tasks(store.ledger, store.tree)
        while True:
            waiting, refused = map(self._left, tasks)
            due = [task for task in _learnt(store.tree) if task in {*waiting, *refused}]
            if not self._are_enough(waiting, refused):
                return []
            if not (gone := {task for task in due if self._is_gone([task], PROBED // len(due))}):
                return due
            self._gone |= gone

    def _left(self, tasks: Sequence[str]) -> list[str]:
        """Return those of tasks of which there is something to learn from, as far as is known."""
        return [
            task for task in tasks if task not in self._gone and self._writer.store.ledger.trainable(task)
        ]

    def _are_enough(self, waiting: Sequence[str], refused: Sequence[str]) -> bool:
        """Return whether tasks that wait are worth a stage, together with those of refused ones where there are any."""
        ledger, tree = self._writer.store.ledger, self._writer.store.tree
        # Single images of a class were learnt by the head; a trunk moves with the next ones.
        if not is_trainable(ledger.trainable(*waiting)):
            return False
        if not refused:
            return True
        known = ledger.trainable(*trained_tasks(ledger, tree, tree.head))
        return is_tried_again(ledger.trainable(*refused), ledger.trainable(*refused, *waiting), known)

    def _may_renew(self) -> bool:
        """Return whether all that is stored may be embedded anew, as far as is known."""
        follow = renewal(self._writer.store)
        few = follow.get("gone", 0) <= MAX_GONE_SHARE * sum(follow.values())
        return bool(self._rules.renew_per_s) and self._rules.shown and few

    def _is_renewed(self) -> bool:
        return self._may_renew() and not self._is_gone(_learnt(self._writer.store.tree), PROBED)

    def _is_gone(self, tasks: Sequence[str], probed: int) -> bool:
        """Return whether of so many shards of tasks more than a few are no longer there."""
        ledger = self._writer.store.ledger
        shards = [shard for s in ledger.shards_of(tasks) if (shard := ledger.shards[s]).rows]
        seen = shards[:: -(-len(shards) // max(probed, 1)) or 1]
        return sum(self._rules.is_gone(shard_ref(shard)) for shard in seen) > MAX_GONE_SHARE * len(seen)

    def _begin_renewal(self) -> Attempt | None:
        store, rate = self._writer.store, self._rules.renew_per_s
        if not rate or _now() < self._renew_not_before:
            return None
        shards, mapped, renewed = store.ledger.shards, mapped_shards(store), _Renewed.by_head(store)
        waiting = [shard for shard in mapped if shard not in renewed.tried]
        # The worst items of all shards, then what is left of each: a shard is read twice, an image decoded once.
        sizes = {s: len(shards[s].worst_rows) for s in waiting if s not in renewed.worst_tried}
        sizes = {shard: count for shard, count in sizes.items() if count}
        worst = bool(sizes)
        if not worst:
            sizes = {shard: renewed.left(shards[shard]) for shard in waiting}
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
        task = shards[chosen[0]].task or ""
        return self._begun(self._writer.begin_later_attempt("renew", [task], chosen, worst=worst))

    def _order(self, attempt: Attempt) -> StageOrder:
        store = self._writer.store
        ledger, tree = store.ledger, store.tree
        shards = attempt.shards or ledger.shards_of(attempt.tasks)
        return StageOrder(
            task=attempt.task,
            version_id=attempt.version_id,
            parent=attempt.parent,
            depth=tree.get(tree.head).depth + 1,
            shards=tuple(shard_ref(ledger.shards[shard]) for shard in shards),
            kind="slow" if attempt.kind == "slow" else "renew",
            tasks=attempt.tasks,
            worst=attempt.worst,
            renewed=attempt.renewed,
        )


def _learnt(tree: VersionTree) -> list[str]:
    return list(dict.fromkeys(task for v in tree.lineage(tree.head) if (task := tree.get(v).task)))


def trained_tasks(ledger: LedgerState, tree: VersionTree, version_id: str) -> frozenset[str]:
    """Return tasks by whose images the trunk of a version was trained, in any stage of its lineage."""
    found: set[str] = set()
    for before, after in pairwise(tree.lineage(version_id)):
        if not tree.same_trunk(before, after):
            found.update(_tasks_of(ledger, tree.get(after)))
    return frozenset(found)


def waiting_tasks(ledger: LedgerState, tree: VersionTree) -> tuple[list[str], list[str]]:
    """Return learnt tasks that no stage of the trunk has taken up yet, and those of stages whose result the floor
    refused, which wait for more, each in the order in which they were learnt. Of a stage that failed there are none."""
    lineage = tree.lineage(tree.head)
    trained, refused, failed = trained_tasks(ledger, tree, tree.head), set[str](), set[str]()
    for attempt in ledger.later_attempts.values():
        if attempt.kind == "slow" and attempt.refused is not None and attempt.parent in lineage:
            (refused if attempt.measured else failed).update(attempt.tasks)
    untrained = [task for task in _learnt(tree) if task not in trained]
    return (
        [task for task in untrained if task not in refused | failed],
        [task for task in untrained if task in refused - failed],
    )


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
    """Return items of learnt shards by how they follow the head's trunk: `exact`, `mapped` and to be embedded anew,
    or `gone`, as their images could not be read for it. Empty while no map moves any of them."""
    mapped = mapped_shards(store) if store.tree.moves and store.form == "exact" else []
    if not mapped and not any(a.kind == "renew" for a in store.ledger.later_attempts.values()):
        return {}
    renewed, found = _Renewed.by_head(store), {"mapped": 0, "gone": 0}
    for shard in mapped:
        found["gone" if shard in renewed.tried else "mapped"] += renewed.left(store.ledger.shards[shard])
    total = sum(store.ledger.shards[shard].rows for shard in store.ledger.shards_of(store.tree.learnt()))
    return {**found, "exact": total - sum(found.values())}


def rows_to_embed(store: Store, order: StageOrder, rows: pa.Table) -> pa.Table:
    """Return those of the living rows of an order's shards that it is to embed: of one that embeds anew, the worst, or
    those that no other has embedded as such."""
    if order.kind != "renew":
        return rows
    keep_n, numbers_n = np.ones(len(rows), bool), rows["row"].to_numpy()
    names, done = rows["shard_id"].cast(pa.string()), _Renewed.by_head(store).worst
    for shard in (ref.shard_id for ref in order.shards):
        if order.worst or shard in done:
            own_n = pc.equal(names, shard).to_numpy()
            is_worst_n = np.isin(numbers_n[own_n], store.ledger.shards[shard].worst_rows)
            keep_n[own_n] = is_worst_n == order.worst
    return rows.filter(pa.array(keep_n))


def _errors(tree: VersionTree, lineage: Sequence[str]) -> dict[str, float]:
    """Return by version of the lineage the summed errors of the maps from it to the head; above 0 if there are any."""
    errors, so_far = {lineage[-1]: 0.0}, 0.0
    for before, after in list(pairwise(lineage))[::-1]:
        if not tree.same_trunk(before, after):
            so_far += max(VersionMetrics.read(tree.get(after).metrics).drift.get("forward_error", 0.0), 1e-12)
        errors[before] = so_far
    return errors


def _rows_of(ledger: LedgerState, tree: VersionTree, version_id: str) -> Iterable[str]:
    """Return shards whose items a version embedded."""
    version = tree.get(version_id)
    attempt = ledger.later_attempts.get(version_id)
    if attempt is not None and attempt.shards:
        return () if attempt.worst else attempt.shards
    moved = version.parent is not None and not tree.same_trunk(version.parent, version_id)
    if not moved and VersionMetrics.read(version.metrics).kind != "embed":
        return ()
    return ledger.shards_of(_tasks_of(ledger, version))


def _tasks_of(ledger: LedgerState, version: Version) -> Sequence[str]:
    attempt = ledger.later_attempts.get(version.version_id)
    if attempt is not None:
        return attempt.tasks
    return (version.task,) if version.task else ()


@dataclass(frozen=True)
class _Renewed:
    """Shards whose items the head's trunk has embedded anew, or could not embed (`tried`); those of which it has
    embedded the worst items (`worst`), or tried to (`worst_tried`)."""

    tried: Set[str]
    worst: Set[str]
    worst_tried: Set[str]

    @staticmethod
    def by_head(store: Store) -> _Renewed:
        tree, attempts = store.tree, store.ledger.later_attempts.values()
        mine = [a for a in attempts if a.kind == "renew" and tree.same_trunk(a.parent, tree.head)]
        done = [a for a in mine if a.version_id in tree.versions]
        ended = [*done, *(a for a in mine if a.refused is not None)]
        return _Renewed(
            {shard for a in ended if not a.worst for shard in a.shards},
            {shard for a in done if a.worst for shard in a.shards},
            {shard for a in ended if a.worst for shard in a.shards},
        )

    def left(self, shard: ShardState) -> int:
        """Return how many items of a mapped shard its worst ones leave to be embedded."""
        return shard.rows - (len(shard.worst_rows) if shard.shard_id in self.worst else 0)
