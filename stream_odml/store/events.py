"""The events of the ledger: for each kind the row that the writer adds, and beside it what a reader makes of that row.

Protects: what is written is read again by the lines below it, so that no column means one thing to the writer and
another to those who replay.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

from stream_odml.store.ledger_states import Attempt, AttemptKind, ShardStage, ShardState, TaskState, Tombstone
from stream_odml.store.row_values import counts, mapping, optional_text, parsed, reading, text, texts, whole

if TYPE_CHECKING:
    from stream_odml.store.ledger import LedgerState

Entry = Mapping[str, Any]
"""A row to add: the columns that its kind fills."""
Row = Mapping[str, Any]
T = TypeVar("T")
Read = Callable[["Replay", Row, dict[str, Any]], None]
_READERS: dict[str, Read] = {}


class Landed(Protocol):
    """What the ledger needs of a shard that landed."""

    @property
    def shard_id(self) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """Return all that is to be remembered, as JSON types; name, uri, format and size_bytes among it."""
        ...


def as_json(value: Mapping[str, Any]) -> str:
    """Return the text of a `detail` or `metrics` column: equal values give equal text."""
    return json.dumps(value, sort_keys=True, default=str)


class Replay:
    """Mutable copies of a state of the ledger while rows are applied."""

    def __init__(self, start: "LedgerState") -> None:
        self.seq, self.epoch = start.seq, start.epoch
        self.shards, self.tasks = _copied(start.shards), _copied(start.tasks)
        self.tombstones, self.txns = list(start.tombstones), set(start.txns)
        self.learnt, self.tally = set(start.learnt_rows), start.tally.copy()
        self.landed, self.indexed = _copied(start.landed), _copied(start.indexed)
        self.members: dict[str, list[str]] = {}
        self.has_erased = False

    def put(self, shard: ShardState) -> None:
        """Take in the new state of a shard."""
        self.shards[shard.shard_id] = shard
        for state, those in (("landed", self.landed), ("indexed", self.indexed)):
            if shard.state == state:
                those[shard.shard_id] = shard
            else:
                those.pop(shard.shard_id, None)

    def apply(self, row: Row) -> None:
        """Take in one row of the ledger."""
        self.seq = int(row["seq"])
        # A kind that this release does not know is passed over: the schema version guards what must not be.
        read = _READERS.get(row["kind"])
        if read is not None:
            with reading("ledger", row):
                read(self, row, parsed(row["detail"]))


def _copied(known: Mapping[str, T]) -> dict[str, T]:
    # dict() of a read-only view looks every key up: twenty times slower than its own copy().
    return known.copy() if isinstance(known, MappingProxyType) else dict(known)


def _reads(kind: str) -> Callable[[Read], Read]:
    """Register what a reader makes of the rows of one kind."""

    def register(read: Read) -> Read:
        _READERS[kind] = read
        return read

    return register


def landed(ref: Landed) -> Entry:
    return {"kind": "landed", "subject": ref.shard_id, "detail": as_json(ref.to_dict())}


@_reads("landed")
def _read_landed(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    if row["subject"] in state.shards:
        return
    state.put(
        ShardState(
            shard_id=text(row["subject"], "the shard"),
            name=text(detail["name"], "name"),
            uri=optional_text(detail["uri"], "uri") or "",
            format=text(detail["format"], "format"),
            size_bytes=whole(detail["size_bytes"], "size_bytes"),
            state="landed",
            landed_seq=row["seq"],
            landed_at=row["time"],
            detail=detail,
        )
    )


def indexed(shard_id: str, txn: str, counts: Mapping[str, Any]) -> Entry:
    return {"kind": "indexed", "subject": shard_id, "txn": txn, "detail": as_json(counts)}


@_reads("indexed")
def _read_indexed(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    shard = state.shards[row["subject"]]
    detail |= {name: counts(detail.get(name, {}), name) for name in ("classes", "reasons", "trainable")}
    detail |= {name: whole(detail.get(name, 0), name) for name in ("rows", "held_out", "quarantined")}
    state.txns.add(row["txn"])
    state.tally.count_indexed(detail)
    # It may have landed before the request.
    state.has_erased |= bool(state.tombstones) and shard.landed_seq < state.tombstones[-1].seq
    made = {"indexed_seq": row["seq"], "indexed_at": row["time"], "txn": row["txn"]}
    found = {name: detail[name] for name in ("rows", "held_out", "quarantined", "classes")}
    state.put(replace(shard, state="indexed", counts=detail, **made, **found))


def set_aside(shard_id: str, reason: str, final: bool) -> Entry:
    return {"kind": "set_aside", "subject": shard_id, "detail": as_json({"reason": reason, "final": final})}


@_reads("set_aside")
def _read_set_aside(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    shard = state.shards[row["subject"]]
    final, problem = bool(detail.get("final", True)), optional_text(detail.get("reason", ""), "reason")
    state.tally.set_aside += final
    stage: ShardStage = "set_aside" if final else shard.state
    state.put(replace(shard, state=stage, attempts=shard.attempts + 1, problem=problem))


def assigned(shard_id: str, task: str, reason: str, detail: Mapping[str, Any]) -> Entry:
    text = as_json({"reason": reason, "detail": dict(detail)})
    return {"kind": "assigned", "subject": shard_id, "task": task, "detail": text}


@_reads("assigned")
def _read_assigned(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    shard, task_id = state.shards[row["subject"]], text(row["task"], "task")
    state.put(replace(shard, state="assigned", task=task_id))
    state.tally.count_assigned(shard.classes)
    task = state.tasks.get(task_id)
    if task is None:
        reason = optional_text(detail.get("reason"), "reason") or ""
        more = mapping(detail.get("detail", {}), "detail")
        task = TaskState(task_id, (), reason, row["time"], more, queued_seq=row["seq"])
    state.tasks[task_id] = replace(task, images=task.images + shard.rows - shard.held_out)
    state.members.setdefault(task_id, list(task.shard_ids)).append(shard.shard_id)


def attempt(
    version_id: str,
    task: str,
    parent: str,
    kind: AttemptKind = "task",
    tasks: Sequence[str] = (),
    shards: Sequence[str] = (),
    worst: bool = False,
    renewed: bool = False,
) -> Entry:
    detail: dict[str, Any] = {"parent": parent}
    if kind != "task":
        detail |= {"kind": kind, "tasks": list(tasks), "shards": list(shards), "worst": worst}
        detail |= {"renewed": True} if renewed else {}
    return {"kind": "attempt", "subject": version_id, "task": task, "detail": as_json(detail)}


@_reads("attempt")
def _read_attempt(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    attempt = Attempt(
        text(row["subject"], "the version"),
        text(detail["parent"], "parent"),
        row["seq"],
        kind=cast(AttemptKind, text(detail.get("kind", "task"), "kind")),
        task=row["task"],
        tasks=texts(detail.get("tasks", []), "tasks"),
        shards=texts(detail.get("shards", []), "shards"),
        worst=bool(detail.get("worst", False)),
        renewed=bool(detail.get("renewed", False)),
    )
    task = state.tasks[row["task"]]
    state.tasks[task.task_id] = replace(task, attempts=(*task.attempts, attempt))


def refused(version_id: str, task: str, reason: str, measured: bool = False) -> Entry:
    detail = {"reason": reason, **({"measured": True} if measured else {})}
    return {"kind": "refused", "subject": version_id, "task": task, "detail": as_json(detail)}


@_reads("refused")
def _read_refused(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    task = state.tasks[row["task"]]
    reason, measured = optional_text(detail.get("reason"), "reason") or "", bool(detail.get("measured"))
    attempts = tuple(
        replace(a, refused=reason, refused_at=row["time"], measured=measured)
        if a.version_id == row["subject"]
        else a
        for a in task.attempts
    )
    state.tasks[task.task_id] = replace(task, attempts=attempts)


def skipped(task: str, reason: str) -> Entry:
    return {"kind": "skipped", "subject": task, "task": task, "detail": as_json({"reason": reason})}


@_reads("skipped")
def _read_skipped(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    task = state.tasks[row["task"]]
    reason = optional_text(detail.get("reason"), "reason") or ""
    state.tasks[task.task_id] = replace(task, skipped=reason, skipped_at=row["time"])


def relearn(task: str, anyway: bool) -> Entry:
    return {"kind": "relearn", "subject": task, "task": task, "detail": as_json({"anyway": anyway})}


@_reads("relearn")
def _read_relearn(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    task, seq = state.tasks[row["task"]], int(row["seq"])
    queued = task.queued_seq if task.skipped is None else seq
    anyway = task.anyway or bool(detail.get("anyway", False))
    state.tasks[task.task_id] = replace(
        task, skipped=None, skipped_at=None, relearn_seq=seq, queued_seq=queued, anyway=anyway
    )


def learnt(version_id: str, task: str) -> Entry:
    return {"kind": "learnt", "subject": version_id, "task": task}


@_reads("learnt")
def _read_learnt(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    state.learnt.add(row["subject"])


def forget(kind: str, name: str, items: int | None) -> Entry:
    if kind not in ("class", "item", "shard"):
        raise ValueError(f"cannot forget a {kind!r}; name a class, an item or a shard")
    return {"kind": "forget", "subject": name, "detail": as_json({"of": kind, "items": items})}


@_reads("forget")
def _read_forget(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    kind, items = detail["of"], detail.get("items")
    if kind not in ("class", "item", "shard"):
        raise ValueError(f"of is {kind!r:.80}, expected class, item or shard")
    name, covered = text(row["subject"], "the name"), None if items is None else whole(items, "items")
    state.tombstones.append(Tombstone(kind, name, row["seq"], row["time"], covered))
    state.has_erased = True


@_reads("epoch")
def _read_epoch(state: "Replay", row: Row, detail: dict[str, Any]) -> None:
    state.epoch = max(state.epoch, int(row["epoch"]))
