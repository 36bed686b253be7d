"""What became of every shard and task, replayed from the ledger's rows and from nothing else.

Protects: the state is a pure function of the rows in `seq` order, so any process that reads them knows the same.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import MappingProxyType

from stream_odml.store.errors import UnknownSubject
from stream_odml.store.events import Replay, Row
from stream_odml.store.ledger_states import (
    Attempt,
    OpenTask,
    ShardStage,
    ShardState,
    Tally,
    TaskState,
    Tombstone,
)


@dataclass(frozen=True)
class LedgerState:
    """An immutable picture of the ledger up to `seq`; `replay` makes the next one from the new rows only."""

    seq: int = -1
    epoch: int = 0
    shards: Mapping[str, ShardState] = field(default_factory=lambda: MappingProxyType({}))
    """By id, in landing order."""
    tasks: Mapping[str, TaskState] = field(default_factory=lambda: MappingProxyType({}))
    """Closed tasks by id, in learning order."""
    tombstones: tuple[Tombstone, ...] = ()
    txns: Set[str] = frozenset()
    """Transactions of indexed shards, whose rows are visible."""
    learnt_rows: Set[str] = frozenset()
    """Version ids that a derived `learnt` row names (for other readers of the table; nothing here depends on it)."""
    tally: Tally = field(default_factory=Tally)
    """Sums over all shards."""
    landed: Mapping[str, ShardState] = field(default_factory=lambda: MappingProxyType({}))
    """Shards that wait to be indexed, in landing order: few, however many there are in all."""
    indexed: Mapping[str, ShardState] = field(default_factory=lambda: MappingProxyType({}))
    """Indexed shards that no task has, in indexing order."""

    @staticmethod
    def replay(rows: Iterable[Row], after: "LedgerState | None" = None) -> "LedgerState":
        """Return the state after `rows` (any order; rows up to `after.seq` are ignored). Pure."""
        start = after or LedgerState()
        new = sorted((row for row in rows if row["seq"] > start.seq), key=lambda row: int(row["seq"]))
        if not new:
            return start
        replay = Replay(start)
        for row in new:
            replay.apply(row)
        for task_id, members in replay.members.items():
            replay.tasks[task_id] = replace(replay.tasks[task_id], shard_ids=tuple(members))
        state = LedgerState(
            seq=replay.seq,
            epoch=replay.epoch,
            shards=MappingProxyType(replay.shards),
            tasks=MappingProxyType(replay.tasks),
            tombstones=tuple(replay.tombstones),
            txns=frozenset(replay.txns),
            learnt_rows=frozenset(replay.learnt),
            tally=replay.tally,
            landed=MappingProxyType(replay.landed),
            indexed=MappingProxyType(replay.indexed),
        )
        if replay.has_erased:  # seldom: else whoever reads the sum would pay for every shard
            state.tally.classes = frozenset(
                name for shard in state.shards for name in state.living_classes(shard)
            )
        return state

    def in_state(self, state: ShardStage) -> list[ShardState]:
        """Return shards of one state in landing order."""
        return [shard for shard in self.shards.values() if shard.state == state]

    @property
    def open_task(self) -> OpenTask:
        """The task that the next boundary closes, perhaps empty."""
        waiting, classes = tuple(self.indexed.values()), Counter[str]()
        for shard in waiting:
            classes.update(shard.classes)
        return OpenTask(self.next_task_id, waiting, classes, sum(shard.rows for shard in waiting))

    @property
    def next_task_id(self) -> str:
        """The id that `open_task` gets when it closes."""
        return f"task-{len(self.tasks) + 1:04d}"

    def due_tasks(self, learnt: Set[str]) -> list[TaskState]:
        """Return closed tasks, in learning order, that are neither in `learnt` (the head's path) nor skipped. One
        that was skipped and taken back stands behind those that waited then: it stops no stage under way."""
        due = (t for t in self.tasks.values() if t.task_id not in learnt and t.skipped is None)
        return sorted(due, key=lambda task: task.queued_seq)

    def trainable(self, *task_ids: str) -> dict[str, int]:
        """Return the images of tasks that may be learnt from, by class, without classes that were forgotten since."""
        tally = Counter[str]()
        for shard in self.shards_of(task_ids):
            trainable, living = self.shards[shard].counts.get("trainable", {}), self.living_classes(shard)
            tally.update({name: count for name, count in trainable.items() if count and name in living})
        return tally

    def current_attempt(self, task_id: str, parent: str, committed: Set[str]) -> Attempt | None:
        """Return the attempt at `task_id` from `parent` to go on with: the last one, unless
        refused or committed."""
        if task_id not in self.tasks:
            raise UnknownSubject(f"task {task_id!r} is not closed; known are {list(self.tasks)[-5:]}")
        tries = [a for a in self.tasks[task_id].attempts if a.parent == parent and a.kind == "task"]
        last = tries[-1] if tries else None
        return None if last is None or last.refused is not None or last.version_id in committed else last

    @cached_property
    def later_attempts(self) -> Mapping[str, Attempt]:
        """Attempts to improve what is learnt (all kinds but `task`) by version, in the order in which they began."""
        found = (a for task in self.tasks.values() for a in task.attempts if a.kind != "task")
        return {attempt.version_id: attempt for attempt in sorted(found, key=lambda attempt: attempt.seq)}

    def shards_of(self, tasks: Iterable[str]) -> list[str]:
        """Return the shards of closed tasks."""
        return [shard for task in tasks for shard in self.tasks[task].shard_ids]

    def forgotten(self, shard_id: str, class_name: str, item_id: str) -> bool:
        """Return whether a tombstone covers this row; what landed after the tombstone is a return, and is not."""
        return self.tombstone_seq(shard_id, class_name, item_id) > self.shards[shard_id].landed_seq

    def tombstone_seq(self, shard_id: str, class_name: str, item_id: str) -> int:
        """Return the `seq` of the latest tombstone that names any of these; -1 for none."""
        names = (("class", class_name), ("item", item_id), ("shard", shard_id))
        return max(self.latest_tombstones.get(name, -1) for name in names)

    def living_classes(self, shard_id: str) -> dict[str, int]:
        """Return the good rows of each class of a shard, without classes that were forgotten since; none of a shard
        that was. Items forgotten one by one, or replaced, still count."""
        shard, tombstones = self.shards[shard_id], self.latest_tombstones
        if tombstones.get(("shard", shard_id), -1) > shard.landed_seq:
            return {}
        return {
            name: count
            for name, count in shard.classes.items()
            if count and tombstones.get(("class", name), -1) < shard.landed_seq
        }

    @property
    def newest_tombstone(self) -> int:
        """The `seq` of the last request to erase; -1 before the first."""
        return self.tombstones[-1].seq if self.tombstones else -1

    @cached_property
    def latest_tombstones(self) -> Mapping[tuple[str, str], int]:
        """(class, item or shard, name) -> the `seq` of its latest tombstone."""
        return {(tombstone.kind, tombstone.name): tombstone.seq for tombstone in self.tombstones}
