"""What the ledger says of a shard, an attempt, a task or an erasure: plain values, made by `events.py`."""

from collections import Counter
from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AttemptKind = Literal["task", "slow", "renew"]
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
    """Why it last failed for good, or why its last attempt failed."""

    @property
    def mapped_error(self) -> float:
        """Error of the map by which its items were taken over from another model's features; 0 of exact ones."""
        return float(self.counts.get("adopted", {}).get("error", 0.0))

    @property
    def worst_rows(self) -> NDArray[np.int64]:
        """Numbers, rising, of the rows that the map by which they were taken over knows least."""
        # Kept as a bit for each row: a list of a fifth of them would be seven times as long.
        bits = bytes.fromhex(self.counts.get("adopted", {}).get("worst", ""))
        return np.flatnonzero(np.unpackbits(np.frombuffer(bits, np.uint8)))


@dataclass(frozen=True)
class Attempt:
    """One try at learning a task from one parent; its version id is unique to it.

    `kind`: `task` learns a task that is due. What is learnt may be improved afterwards: `slow` moves the trunk on
    the images of `tasks` (`renewed`: as one behind which all that is stored is embedded anew), `renew` embeds items of
    `shards` anew by a trunk that moved since (`worst`: only those that their map knows least). These two are committed
    under the head of the moment, if it descends from `parent` and has its trunk.
    """

    version_id: str
    parent: str
    seq: int
    refused: str | None = None
    refused_at: datetime | None = None
    measured: bool = False
    """Refused by what it would have served; else it has failed."""
    kind: AttemptKind = "task"
    task: str = ""
    tasks: tuple[str, ...] = ()
    shards: tuple[str, ...] = ()
    worst: bool = False
    renewed: bool = False


@dataclass(frozen=True)
class TaskState:
    """A closed task: its shards in landing order, why it closed, its attempts in order."""

    task_id: str
    shard_ids: tuple[str, ...]
    reason: str
    closed_at: datetime
    detail: Mapping[str, Any]
    attempts: tuple[Attempt, ...] = ()
    skipped: str | None = None
    skipped_at: datetime | None = None
    images: int = 0
    """Good rows of its shards that are not held out."""
    relearn_seq: int = -1
    """`seq` of the latest request to learn it after all; what was refused before it does not count any more."""
    queued_seq: int = -1
    """Its place among the tasks that wait: when it closed, or when it was taken back after it was skipped."""
    anyway: bool = False
    """Publish it whatever the quality gate finds."""

    @property
    def refused(self) -> tuple[Attempt, ...]:
        """Attempts to learn it that were refused, from any parent, since it was last asked for again."""
        tries = (a for a in self.attempts if a.kind == "task" and a.seq > self.relearn_seq)
        return tuple(a for a in tries if a.refused is not None)

    @property
    def refusals(self) -> int:
        """How many attempts were refused, see `refused`."""
        return len(self.refused)


@dataclass(frozen=True)
class OpenTask:
    """The shards that wait for a boundary, in indexing order."""

    task_id: str
    shards: tuple[ShardState, ...]
    classes: Mapping[str, int]
    rows: int


@dataclass(frozen=True)
class Tombstone:
    """A request to forget a class, an item or a shard: it covers all that landed before `seq`, and nothing after."""

    kind: Literal["class", "item", "shard"]
    name: str
    seq: int
    time: datetime
    items: int | None = None
    """How many items it covered when it was put; None where nobody counted."""


@dataclass
class Tally:
    """Sums over all shards, kept as rows are applied: reading them costs the same however many there are. One that is
    being counted is a copy that nobody else sees."""

    indexed: int = 0
    assigned: int = 0
    set_aside: int = 0
    rows: int = 0
    held_out: int = 0
    quarantined: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Quarantined rows by reason."""
    classes: Set[str] = frozenset()
    """Every class of which something was indexed and, as far as a shard's counts tell, not erased since."""
    closed_classes: Set[str] = frozenset()
    """Those of shards that a closed task has."""

    def copy(self) -> "Tally":
        """Return one to go on counting with; the sets are shared until a class is added."""
        return Tally(**{**self.__dict__, "reasons": Counter(self.reasons)})

    def count_indexed(self, counts: Mapping[str, Any]) -> None:
        """Count a shard that was indexed with these counts."""
        self.indexed += 1
        self.rows += int(counts.get("rows", 0))
        self.held_out += int(counts.get("held_out", 0))
        self.quarantined += int(counts.get("quarantined", 0))
        self.reasons.update(counts.get("reasons", {}))
        self.classes = _with(self.classes, {name: n for name, n in counts.get("classes", {}).items() if n})

    def count_assigned(self, classes: Mapping[str, int]) -> None:
        """Count a shard of these classes that became part of a task."""
        self.assigned += 1
        self.closed_classes = _with(self.closed_classes, classes)


def _with(known: Set[str], names: Mapping[str, int]) -> Set[str]:
    return known if names.keys() <= known else known | names.keys()
