"""Which closed tasks the served version does not know, why, and what to do: from ledger and tree alone.

Protects: the answer is the same while the stream runs and after it ended; what the head has learnt is never in it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from typing import Any, Literal

from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import TaskState
from stream_odml.store.version_metrics import key
from stream_odml.store.versions import VersionTree

FIGURES = tuple(
    key(f"{of}recall_at_1", split, *form)
    for split in ("old", "new")
    for of, form in (("parent_", ()), ("", ("served",)), ("parent_", ("estimated",)), ("", ("estimated",)))
)
"""What the quality gate compares, as the metrics of a version or of a refused attempt name it."""
ROLLED_BACK = "rollback"
"""Why a task is skipped that only the branch left by a rollback had learnt."""
NOTHING = "nothing to learn"
"""How the reason ends for a task of too few images, see `ingest.boundary.is_trainable`."""


@dataclass(frozen=True)
class Unlearnt:
    """A task that was refused and is tried again (`refused`), or that is not tried any more (`skipped`)."""

    task: str
    state: Literal["refused", "skipped"]
    reason: str
    """Of the latest refusal, with the figures that it rests on; or why it is skipped."""
    remedy: str
    attempts: int
    """Refused so far."""
    since: float
    """Seconds since the epoch of the latest refusal, or of the end of trying."""
    images: int
    classes: int
    figures: Mapping[str, float] = field(default_factory=dict)
    """Recall@1 of the latest refused attempt and of the version before it, by the names of `FIGURES`."""

    def as_json(self) -> dict[str, Any]:
        """Return plain values, with the line for people."""
        return {**asdict(self), "in_words": self.in_words()}

    def in_words(self) -> str:
        """Return one line, for people."""
        size = f"{self.task} ({self.classes} classes, {self.images} images)"
        if self.state == "refused":
            return f"{size} was refused: {self.reason}; {self.remedy}"
        times = f"refused {self.attempts} times, last: " if self.attempts else ""
        return f"{size} was not learnt: {times}{self.reason}; {self.remedy}"


def unlearnt_tasks(
    ledger: LedgerState, tree: VersionTree, version_id: str | None = None, root: str = "ROOT"
) -> list[Unlearnt]:
    """Return refused and skipped tasks that `version_id` (the head) has not learnt, oldest first. A task that waits
    and was never refused is not among them. `root` stands in the commands that are advised."""
    learnt = tree.learnt(version_id)
    metrics = {refusal.version_id: refusal.metrics for refusal in tree.refusals}
    return [
        _unlearnt(task, ledger, metrics, root)
        for task in ledger.tasks.values()
        if task.task_id not in learnt and (task.skipped is not None or task.refused)
    ]


def _unlearnt(
    task: TaskState, ledger: LedgerState, metrics: Mapping[str, Mapping[str, Any]], root: str
) -> Unlearnt:
    last = task.refused[-1] if task.refused else None
    found = metrics.get(last.version_id, {}) if last is not None else {}
    figures = {name: float(found[name]) for name in FIGURES if name in found}
    # A crash between the two rows of a refusal loses its figures, not its reason.
    by_the_gate = bool(found) or "Recall@1" in _reason(task)
    classes = {name for shard in task.shard_ids for name in ledger.shards[shard].classes}
    at: datetime | None = task.skipped_at or (last.refused_at if last is not None else None)
    return Unlearnt(
        task=task.task_id,
        state="refused" if task.skipped is None else "skipped",
        reason=_reason(task),
        remedy=_next_attempt(task) if task.skipped is None else _remedy(task, by_the_gate, root),
        attempts=len(task.refused),
        since=0.0 if at is None else at.timestamp(),
        images=task.images,
        classes=len(classes),
        figures=figures,
    )


def _reason(task: TaskState) -> str:
    if task.skipped == ROLLED_BACK:
        return "skipped by a rollback to a version from before it"
    return (task.refused[-1].refused if task.refused else task.skipped) or ""


def _next_attempt(task: TaskState) -> str:
    how = (
        ", to be published whatever the gate finds" if task.anyway else f" with {gentler(len(task.refused))}"
    )
    return f"trying again{how}"


def gentler(refusals: int) -> str:
    """Return what the attempt after so many refusals does differently, in words."""
    return f"what holds the old classes {4**refusals} times stronger and {1 / 2**refusals:g} of the learning rate"


def _remedy(task: TaskState, by_the_gate: bool, root: str) -> str:
    command = f"stream-odml relearn {root} {task.task_id}"
    if (task.skipped or "").endswith(NOTHING):
        return "land more images of these classes; what is here stays searchable"
    if task.skipped == ROLLED_BACK:
        return f"`{command}` learns it again"
    if by_the_gate:
        return (
            "its images stay searchable by the model before it. Look at its labels first; "
            f"`{command}` tries again, and with --anyway the result is published at that price"
        )
    return f"fix the cause, then `{command}` tries again"
