"""What became of every shard and task, replayed from the ledger's rows and from nothing else.

Protects: the state is a pure function of the rows in ``seq`` order, so any process that reads them knows the
same.
"""

import json
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal, TypeVar

from stream_odml.store.errors import UnknownSubject
from stream_odml.store.tally import Tally

Row = Mapping[str, Any]
T = TypeVar("T")
ShardStage = Literal["landed", "indexed", "assigned", "set_aside"]


@dataclass(frozen=True)
class ShardState:
    """One shard: where it lies, how far it came, what was found in it."""

    shard_id: str
    name: str
    uri: str
    format: str
    size_bytes: int
    state: ShardStage
    landed_seq: int
    landed_at: datetime
    detail: Mapping[str, Any]
    """All that the producer said when it landed (mtime, manifest, ...)."""
    indexed_seq: int | None = None
    indexed_at: datetime | None = None
    txn: str | None = None
    rows: int = 0
    """Good rows in the gallery, held-out ones included."""
    held_out: int = 0
    quarantined: int = 0
    classes: Mapping[str, int] = field(default_factory=dict)
    """Good rows of each class, held-out ones included."""
    counts: Mapping[str, Any] = field(default_factory=dict)
    """All that the indexer counted, as it gave it."""
    task: str | None = None
    attempts: int = 0
    """How often its reading or indexing failed."""
    problem: str | None = None
    """Why it was last set aside, or why its last attempt failed."""


@dataclass(frozen=True)
class Attempt:
    """One try at learning a task from one parent; its version id is unique to it."""

    version_id: str
    parent: str
    seq: int
    started_at: datetime
    refused: str | None = None
    refused_at: datetime | None = None


@dataclass(frozen=True)
class TaskState:
    """A closed task: its shards in landing order, why it closed, its attempts in order."""

    task_id: str
    shard_ids: tuple[str, ...]
    reason: str
    closed_seq: int
    closed_at: datetime
    detail: Mapping[str, Any]
    attempts: tuple[Attempt, ...] = ()
    skipped: str | None = None
    skipped_at: datetime | None = None
    images: int = 0
    """Good rows of its shards that are not held out."""
    relearn_seq: int = -1
    """``seq`` of the latest request to learn it after all; what was refused before it does not count any more."""
    queued_seq: int = -1
    """Its place among the tasks that wait: when it closed, or when it was taken back after it was skipped."""
    anyway: bool = False
    """Publish it whatever the quality gate finds."""

    @property
    def refused(self) -> tuple[Attempt, ...]:
        """Attempts that were refused, from any parent, since it was last asked for again."""
        return tuple(a for a in self.attempts if a.refused is not None and a.seq > self.relearn_seq)

    @property
    def refusals(self) -> int:
        """How many attempts were refused, see :attr:`refused`."""
        return len(self.refused)


@dataclass(frozen=True)
class OpenTask:
    """The shards that wait for a boundary, in indexing order; ``since`` is when the first of them was
    indexed."""

    task_id: str
    shards: tuple[ShardState, ...]
    since: datetime | None
    classes: Mapping[str, int]
    rows: int


@dataclass(frozen=True)
class Tombstone:
    """A request to forget a class, an item or a shard: it covers all that landed before ``seq``, and nothing after."""

    kind: Literal["class", "item", "shard"]
    name: str
    seq: int
    time: datetime
    items: int | None = None
    """How many items it covered when it was put; None where nobody counted."""


@dataclass(frozen=True)
class LedgerState:
    """An immutable picture of the ledger up to ``seq``; :meth:`replay` makes the next one from the new rows
    only."""

    seq: int = -1
    epoch: int = 0
    shards: Mapping[str, ShardState] = field(default_factory=lambda: MappingProxyType({}))
    """By id, in landing order."""
    tasks: Mapping[str, TaskState] = field(default_factory=lambda: MappingProxyType({}))
    """Closed tasks by id, in learning order."""
    tombstones: tuple[Tombstone, ...] = ()
    txns: Set[str] = frozenset()
    """Tier-1 transactions that are visible."""
    learnt_rows: Set[str] = frozenset()
    """Version ids that a derived ``learnt`` row names (for other readers of the table; nothing here depends
    on it)."""
    set_aside_count: int = 0
    tally: Tally = field(default_factory=Tally)
    """Sums over all shards."""
    landed: Mapping[str, ShardState] = field(default_factory=lambda: MappingProxyType({}))
    """Shards that wait to be indexed, in landing order: few, however many there are in all."""
    indexed: Mapping[str, ShardState] = field(default_factory=lambda: MappingProxyType({}))
    """Indexed shards that no task has, in indexing order."""

    @staticmethod
    def replay(rows: Iterable[Row], after: "LedgerState | None" = None) -> "LedgerState":
        """The state after ``rows`` (any order; rows up to ``after.seq`` are ignored). Pure."""
        start = after or LedgerState()
        new = sorted((row for row in rows if row["seq"] > start.seq), key=lambda row: int(row["seq"]))
        if not new:
            return start
        building = _Building(start)
        for row in new:
            building.apply(row)
        return building.state()

    def in_state(self, state: ShardStage) -> list[ShardState]:
        """Shards of one state in landing order."""
        if state == "landed":
            return list(self.landed.values())
        return [shard for shard in self.shards.values() if shard.state == state]

    @property
    def waiting(self) -> list[ShardState]:
        """Indexed shards that no task has, in indexing order."""
        return list(self.indexed.values())

    @property
    def open_task(self) -> OpenTask:
        """The task that the next boundary closes, perhaps empty."""
        waiting = self.waiting
        classes: dict[str, int] = {}
        for shard in waiting:
            for name, count in shard.classes.items():
                classes[name] = classes.get(name, 0) + count
        since = min((shard.indexed_at for shard in waiting if shard.indexed_at), default=None)
        return OpenTask(
            self.next_task_id, tuple(waiting), since, classes, sum(shard.rows for shard in waiting)
        )

    @property
    def next_task_id(self) -> str:
        """The id that :attr:`open_task` gets when it closes."""
        return f"task-{len(self.tasks) + 1:04d}"

    def due_tasks(self, learnt: Set[str]) -> list[TaskState]:
        """Closed tasks, in learning order, that are neither in ``learnt`` (the head's path) nor skipped.

        One that was skipped and taken back stands behind those that waited then: it stops no stage under way.
        """
        due = (t for t in self.tasks.values() if t.task_id not in learnt and t.skipped is None)
        return sorted(due, key=lambda task: task.queued_seq)

    def next_task(self, learnt: Set[str]) -> TaskState | None:
        """The first of :meth:`due_tasks`."""
        return next(iter(self.due_tasks(learnt)), None)

    def current_attempt(self, task_id: str, parent: str, committed: Set[str]) -> Attempt | None:
        """The attempt at ``task_id`` from ``parent`` to go on with: the last one, unless refused or
        committed."""
        if task_id not in self.tasks:
            raise UnknownSubject(f"task {task_id!r} is not closed; known are {list(self.tasks)[-5:]}")
        tries = [a for a in self.tasks[task_id].attempts if a.parent == parent]
        last = tries[-1] if tries else None
        return None if last is None or last.refused is not None or last.version_id in committed else last

    def forgotten(self, shard_id: str, class_name: str, item_id: str) -> bool:
        """Whether a tombstone covers this row; what landed after the tombstone is a return, and is not."""
        stones = self.latest_tombstones
        names = (("class", class_name), ("item", item_id), ("shard", shard_id))
        return max(stones.get(name, -1) for name in names) > self.shards[shard_id].landed_seq

    @cached_property
    def latest_tombstones(self) -> Mapping[tuple[str, str], int]:
        """(class, item or shard, name) -> the ``seq`` of its latest tombstone."""
        return {(stone.kind, stone.name): stone.seq for stone in self.tombstones}


class _Building:
    """Mutable copies while rows are applied; becomes one immutable state at the end."""

    def __init__(self, start: LedgerState) -> None:
        self.seq, self.epoch, self.set_aside_count = start.seq, start.epoch, start.set_aside_count
        self.shards, self.tasks = _copied(start.shards), _copied(start.tasks)
        self.tombstones, self.txns, self.learnt = (
            list(start.tombstones),
            set(start.txns),
            set(start.learnt_rows),
        )
        self.tally, self.landed, self.indexed = (
            start.tally.copy(),
            _copied(start.landed),
            _copied(start.indexed),
        )
        self.members: dict[str, list[str]] = {}

    def state(self) -> LedgerState:
        for task_id, members in self.members.items():
            self.tasks[task_id] = replace(self.tasks[task_id], shard_ids=tuple(members))
        return LedgerState(
            seq=self.seq,
            epoch=self.epoch,
            shards=MappingProxyType(self.shards),
            tasks=MappingProxyType(self.tasks),
            tombstones=tuple(self.tombstones),
            txns=frozenset(self.txns),
            learnt_rows=frozenset(self.learnt),
            set_aside_count=self.set_aside_count,
            tally=self.tally,
            landed=MappingProxyType(self.landed),
            indexed=MappingProxyType(self.indexed),
        )

    def _put(self, shard: ShardState) -> None:
        self.shards[shard.shard_id] = shard
        for state, those in (("landed", self.landed), ("indexed", self.indexed)):
            if shard.state == state:
                those[shard.shard_id] = shard
            else:
                those.pop(shard.shard_id, None)

    def apply(self, row: Row) -> None:
        self.seq = int(row["seq"])
        detail = json.loads(row["detail"] or "{}")
        # A kind that this release does not know is passed over: the schema version guards what must not be.
        handler = getattr(self, f"_{row['kind']}", None)
        if handler is not None:
            handler(row, detail)

    def _landed(self, row: Row, detail: dict[str, Any]) -> None:
        if row["subject"] in self.shards:
            return
        self._put(
            ShardState(
                shard_id=row["subject"],
                name=detail["name"],
                uri=detail["uri"],
                format=detail["format"],
                size_bytes=int(detail["size_bytes"]),
                state="landed",
                landed_seq=row["seq"],
                landed_at=row["time"],
                detail=detail,
            )
        )

    def _indexed(self, row: Row, detail: dict[str, Any]) -> None:
        shard = self.shards[row["subject"]]
        self.txns.add(row["txn"])
        self.tally.count_indexed(detail)
        self._put(
            replace(
                shard,
                state="indexed",
                indexed_seq=row["seq"],
                indexed_at=row["time"],
                txn=row["txn"],
                rows=int(detail.get("rows", 0)),
                held_out=int(detail.get("held_out", 0)),
                quarantined=int(detail.get("quarantined", 0)),
                classes=detail.get("classes", {}),
                counts=detail,
            )
        )

    def _set_aside(self, row: Row, detail: dict[str, Any]) -> None:
        shard = self.shards[row["subject"]]
        final = bool(detail.get("final", True))
        self.set_aside_count += final
        self.tally.set_aside += final
        self._put(
            replace(
                shard,
                state="set_aside" if final else shard.state,
                attempts=shard.attempts + 1,
                problem=detail.get("reason", ""),
            )
        )

    def _assigned(self, row: Row, detail: dict[str, Any]) -> None:
        shard, task_id = self.shards[row["subject"]], row["task"]
        self._put(replace(shard, state="assigned", task=task_id))
        self.tally.count_assigned(shard.classes)
        task = self.tasks.get(task_id)
        if task is None:
            reason, more = detail.get("reason", ""), detail.get("detail", {})
            task = TaskState(task_id, (), reason, row["seq"], row["time"], more, queued_seq=row["seq"])
        self.tasks[task_id] = replace(task, images=task.images + shard.rows - shard.held_out)
        self.members.setdefault(task_id, list(task.shard_ids)).append(shard.shard_id)

    def _attempt(self, row: Row, detail: dict[str, Any]) -> None:
        attempt = Attempt(row["subject"], detail["parent"], row["seq"], row["time"])
        task = self.tasks[row["task"]]
        self.tasks[task.task_id] = replace(task, attempts=(*task.attempts, attempt))

    def _refused(self, row: Row, detail: dict[str, Any]) -> None:
        task = self.tasks[row["task"]]
        reason, at = detail.get("reason", ""), row["time"]
        attempts = tuple(
            replace(a, refused=reason, refused_at=at) if a.version_id == row["subject"] else a
            for a in task.attempts
        )
        self.tasks[task.task_id] = replace(task, attempts=attempts)

    def _skipped(self, row: Row, detail: dict[str, Any]) -> None:
        task = self.tasks[row["task"]]
        self.tasks[task.task_id] = replace(task, skipped=detail.get("reason", ""), skipped_at=row["time"])

    def _relearn(self, row: Row, detail: dict[str, Any]) -> None:
        task, seq = self.tasks[row["task"]], int(row["seq"])
        queued = task.queued_seq if task.skipped is None else seq
        anyway = task.anyway or bool(detail.get("anyway", False))
        self.tasks[task.task_id] = replace(
            task, skipped=None, skipped_at=None, relearn_seq=seq, queued_seq=queued, anyway=anyway
        )

    def _learnt(self, row: Row, detail: dict[str, Any]) -> None:
        self.learnt.add(row["subject"])

    def _forget(self, row: Row, detail: dict[str, Any]) -> None:
        self.tombstones.append(
            Tombstone(detail["of"], row["subject"], row["seq"], row["time"], detail.get("items"))
        )

    def _epoch(self, row: Row, detail: dict[str, Any]) -> None:
        self.epoch = max(self.epoch, int(row["epoch"]))


def _copied(known: Mapping[str, T]) -> dict[str, T]:
    # dict() of a read-only view looks every key up: twenty times slower than its own copy().
    return known.copy() if isinstance(known, MappingProxyType) else dict(known)
