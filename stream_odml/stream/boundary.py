"""When a task ends: a pure function of the shards that wait, in the order in which they landed.

Invariant: members depend on the order of landing only, not on when one asks: count conditions close the
*shortest* prefix that meets them, so a driver that was away closes the same tasks afterwards. The age of
an image is the one condition of the clock; that is why a closed task's members are committed before it is
learnt.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

MIN_CLASSES = 2
MIN_IMAGES_PER_CLASS = 2


@dataclass(frozen=True)
class WaitingShard:
    """An indexed shard that no task has yet. `counts`: trainable images by class (neither quarantined nor
    held out).

    `landed_at` in seconds since 1970. `task`, `task_complete` and `task_shards` come from the shard's
    manifest.
    """

    shard_id: str
    name: str
    counts: Mapping[str, int]
    landed_at: float
    task: str | None = None
    task_complete: bool = False
    task_shards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Closure:
    """A task to close: its members in the order of landing, and why.

    `trainable` is False where a manifest closed a task with fewer than two classes of two images: there is no
    negative or no positive to learn from, and the task is to be recorded as skipped.
    """

    shard_ids: tuple[str, ...]
    reason: str
    images: int
    classes: int
    trainable: bool
    task: str | None = None


@dataclass(frozen=True)
class BoundaryPolicy:
    """Which events close a task. Conditions combine by "or"; None switches one off."""

    new_classes: int | None = 20
    """Classes that no closed task has, among the waiting images."""
    images: int | None = 10_000
    """Trainable images that wait."""
    age_s: float | None = 3600.0
    """Seconds since the oldest waiting image landed."""
    manifest: bool = True
    """A producer may say that a task is complete."""

    __pydantic_config__: ClassVar[dict[str, object]] = {"extra": "forbid", "use_attribute_docstrings": True}

    def __post_init__(self) -> None:
        for name in ("new_classes", "images", "age_s"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(
                    f"boundary.{name} is {value}: expected more than 0, or null to switch it off"
                )
        if self.new_classes is None and self.images is None and self.age_s is None and not self.manifest:
            raise ValueError("every boundary is off, so no task would ever be learnt: set at least one")

    def decide(
        self,
        waiting: Sequence[WaitingShard],
        known_classes: Collection[str],
        now: float,
        settled: Collection[str] = (),
    ) -> Closure | None:
        """The next task to close, or None. Ask again after closing, without its members, until None.

        `waiting` in the order of landing; `known_classes`: classes of the tasks closed so far; `now` in
        seconds since 1970; `settled`: names of shards that will not wait again, because a task has them or
        they were set aside, so that a manifest that names them is not waited for. Without a manifest no task
        closes before it has two classes of two images: it waits for more.
        """
        known = frozenset(known_classes)
        tally: dict[str, int] = {}
        for end, shard in enumerate(waiting, start=1):
            if self.manifest and shard.task_complete:
                members = _members(waiting, end - 1, settled)
                if members is not None:
                    return _closure(
                        members, f"manifest: task {shard.task or shard.name} is complete", shard.task
                    )
            _add(tally, shard)
            reason = self._reached(tally, known)
            if reason and is_trainable(tally):
                return _closure(waiting[:end], reason)
        return self._by_age(waiting, tally, now)

    def explain(
        self, waiting: Sequence[WaitingShard], known_classes: Collection[str], now: float
    ) -> list[str]:
        """One line per condition: what waits for what. For people, in `status`."""
        if not waiting:
            return ["no image waits"]
        tally: dict[str, int] = {}
        for shard in waiting:
            _add(tally, shard)
        fresh, total = len(tally.keys() - frozenset(known_classes)), sum(tally.values())
        lines = [f"{len(waiting)} shards with {total} images of {len(tally)} classes wait"]
        if self.new_classes is not None:
            lines.append(f"new classes: {fresh} of {self.new_classes}")
        if self.images is not None:
            lines.append(f"images: {total} of {self.images}")
        if self.age_s is not None:
            lines.append(
                f"age of the oldest: {max(0.0, now - waiting[0].landed_at):.0f} s of {self.age_s:.0f} s"
            )
        if not is_trainable(tally):
            lines.append(
                f"held back: fewer than {MIN_CLASSES} classes with {MIN_IMAGES_PER_CLASS} images; needs more"
            )
        return lines + [line for line in (_missing(waiting, at) for at in range(len(waiting))) if line]

    def _reached(self, tally: Mapping[str, int], known: frozenset[str]) -> str | None:
        fresh, total = len(tally.keys() - known) if self.new_classes is not None else 0, sum(tally.values())
        if self.new_classes is not None and fresh >= self.new_classes:
            return f"new classes: {fresh} of {self.new_classes}"
        if self.images is not None and total >= self.images:
            return f"images: {total} of {self.images}"
        return None

    def _by_age(
        self, waiting: Sequence[WaitingShard], tally: Mapping[str, int], now: float
    ) -> Closure | None:
        if self.age_s is None or not waiting or not is_trainable(tally):
            return None
        age = now - min(shard.landed_at for shard in waiting)
        return _closure(waiting, f"age: {age:.0f} s of {self.age_s:.0f} s") if age >= self.age_s else None


def _add(tally: dict[str, int], shard: WaitingShard) -> None:
    for name, count in shard.counts.items():
        if count:
            tally[name] = tally.get(name, 0) + count


def is_trainable(tally: Mapping[str, int]) -> bool:
    """Whether there is something to tell apart: two classes of two images, of trainable images by class."""
    return sum(count >= MIN_IMAGES_PER_CLASS for count in tally.values()) >= MIN_CLASSES


def _members(
    waiting: Sequence[WaitingShard], at: int, settled: Collection[str] = ()
) -> Sequence[WaitingShard] | None:
    """What the complete task at `at` consists of; None while a shard that it names has not been indexed."""
    marker = waiting[at]
    if not marker.task_shards:
        if (
            marker.task is not None and marker.counts
        ):  # a shard that is itself of the task: those of the same name
            return [shard for shard in waiting[: at + 1] if shard.task == marker.task]
        return waiting[: at + 1]
    if _missing(waiting, at, settled):
        return None
    wanted = {*marker.task_shards, marker.name}
    return [shard for shard in waiting if shard.name in wanted]


def _missing(waiting: Sequence[WaitingShard], at: int, settled: Collection[str] = ()) -> str | None:
    marker = waiting[at]
    here = {shard.name for shard in waiting} | {*settled}
    absent = sorted({*marker.task_shards} - here) if marker.task_complete else []
    if not absent:
        return None
    return (
        f"task {marker.task} is complete but waits for {len(absent)} of its shards: {', '.join(absent[:3])}"
    )


def _closure(members: Sequence[WaitingShard], reason: str, task: str | None = None) -> Closure:
    tally: dict[str, int] = {}
    for shard in members:
        _add(tally, shard)
    ids = tuple(shard.shard_id for shard in members)
    return Closure(ids, reason, sum(tally.values()), len(tally), is_trainable(tally), task)
