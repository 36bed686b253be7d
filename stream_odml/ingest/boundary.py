"""When a task ends: a pure function of the shards that wait, in the order in which they landed.

Invariant: members depend on the order of landing only, not on when one asks: count conditions close the *shortest*
prefix that meets them, so a driver that was away closes the same tasks afterwards. The age of an image is the one
condition of the clock; that is why a closed task's members are committed before it is learnt.

A shard that names its task, or that a manifest which landed *before* it names, belongs to that task: the conditions do
not count it. A manifest claims only what lands after it, since what landed before may have been closed by then. No
manifest closes a task without an image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated, ClassVar

from pydantic import Field

from stream_odml.ingest.shard import TASK_SUFFIX
from stream_odml.wording import some

Settled = Mapping[str, str]
"""Names of shards that will not wait again, and where they are: the id of their task, or `failed`."""

_NONE: Settled = MappingProxyType({})
_ABOVE_0 = Field(json_schema_extra={"exclusiveMinimum": 0})
"""Shows the range in the example; `BoundaryPolicy` checks it, with a remedy that pydantic does not know."""
MIN_CLASSES = 2
MIN_IMAGES_PER_CLASS = 2


@dataclass(frozen=True)
class WaitingShard:
    """An indexed shard that no task has yet. `counts`: trainable images by class (neither quarantined nor held out).
    `landed_at` in seconds since 1970. `task`, `task_complete` and `task_shards` come from the shard's manifest."""

    shard_id: str
    name: str
    counts: Mapping[str, int]
    landed_at: float
    task: str | None = None
    task_complete: bool = False
    task_shards: tuple[str, ...] = ()


@dataclass(frozen=True)
class Closure:
    """A task to close: its members in the order of landing, and why. `trainable` is False where a manifest closed a
    task with too little to learn from: the task is to be recorded as skipped."""

    shard_ids: tuple[str, ...]
    reason: str
    images: int
    classes: int
    trainable: bool
    task: str | None = None


@dataclass(frozen=True)
class BoundaryPolicy:
    """Which events close a task. Conditions combine by "or"; null switches one off."""

    new_classes: Annotated[int, _ABOVE_0] | None = 20
    """Classes among the waiting images that no closed task has."""
    images: Annotated[int, _ABOVE_0] | None = 10_000
    """Waiting trainable images."""
    age_s: Annotated[float, _ABOVE_0] | None = 3600.0
    """Seconds since the oldest waiting image landed."""
    manifest: bool = True
    """Close a task when a producer's manifest says that it is complete."""

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
        settled: Settled = _NONE,
        *,
        any_image: bool = False,
    ) -> Closure | None:
        """Return the next task to close, or None. Ask again after closing, without its members, until None.

        `waiting` in the order of landing; `known_classes`: classes of the tasks closed so far; `now` in
        seconds since 1970; a manifest does not wait for shards that are `settled`. Without a manifest no task
        closes before there is something to learn: two classes of two images, or, with `any_image`, one image, as
        where only a head remains to be solved.
        """
        known = frozenset(known_classes)
        owned = self._owned(waiting)
        open_task: list[WaitingShard] = []
        tally = Counter[str]()
        for at, shard in enumerate(waiting):
            if self.manifest and shard.task_complete:
                members = _members(waiting, at, settled, owned)
                if members and any(map(_has_images, members)):
                    return _closure(members, _manifest_reason(shard, settled), any_image, shard.task)
            if shard.shard_id in owned:
                continue
            open_task.append(shard)
            tally.update(_tally([shard]))
            reason = next((text for text, is_met in self._counts(tally, known) if is_met), None)
            if reason and is_trainable(tally, any_image):
                return _closure(open_task, reason, any_image)
        return self._by_age(open_task, tally, now, any_image)

    def closes_nothing(self, waiting: Sequence[WaitingShard], settled: Settled) -> dict[str, str]:
        """Return task manifests that close no task, by id, and why: no image of theirs waits. Ask after `decide`."""
        owned = self._owned(waiting)
        found = {}
        for at, shard in enumerate(waiting if self.manifest else ()):
            if not (shard.task_complete and _is_marker(shard)):
                continue
            members = _members(waiting, at, settled, owned)
            if members is not None and not any(map(_has_images, members)):
                found[shard.shard_id] = f"task {shard.task} closes nothing: {_where(shard, settled)}"
        return found

    def explain(
        self,
        waiting: Sequence[WaitingShard],
        known_classes: Collection[str],
        now: float,
        settled: Settled = _NONE,
        *,
        any_image: bool = False,
    ) -> list[str]:
        """Return one line per condition: what waits for what. For people, in `status`. Arguments as of `decide`."""
        owned = self._owned(waiting)
        if not waiting:
            return ["no image waits"]
        counted = [shard for shard in waiting if shard.shard_id not in owned]
        tally, oldest = _tally(counted), _oldest(counted)
        lines = [f"{len(counted)} shards with {tally.total()} images of {len(tally)} classes wait"]
        lines += [text for text, _ in self._counts(tally, frozenset(known_classes))]
        if self.age_s is not None and oldest is not None:
            lines.append(f"age of the oldest: {max(0.0, now - oldest):.0f} s of {self.age_s:.0f} s")
        if not is_trainable(tally, any_image):
            few = f"fewer than {MIN_CLASSES} classes with {MIN_IMAGES_PER_CLASS} images"
            lines.append(f"held back: {'no image to learn from' if any_image else few}; needs more")
        missing = (_missing(waiting, at, settled) for at in range(len(waiting)))
        return [*lines, *_announced(waiting, owned), *filter(None, missing)]

    def _owned(self, waiting: Sequence[WaitingShard]) -> frozenset[str]:
        """Return ids of shards that belong to a task by name, and of manifests: no condition counts them."""
        owned: set[str] = set()
        announced: set[str] = set()
        for shard in waiting if self.manifest else ():
            if shard.name in announced or shard.task is not None:
                owned.add(shard.shard_id)
            if shard.task_complete:
                announced.update(shard.task_shards)
        return frozenset(owned)

    def _counts(self, tally: Counter[str], known: frozenset[str]) -> Iterator[tuple[str, bool]]:
        """Yield the conditions that count, in words, and whether each is met."""
        if self.new_classes is not None:
            fresh = len(tally.keys() - known)
            yield f"new classes: {fresh} of {self.new_classes}", fresh >= self.new_classes
        if self.images is not None:
            total = tally.total()
            yield f"images: {total} of {self.images}", total >= self.images

    def _by_age(
        self, waiting: Sequence[WaitingShard], tally: Mapping[str, int], now: float, any_image: bool
    ) -> Closure | None:
        oldest = _oldest(waiting)
        if self.age_s is None or oldest is None or not is_trainable(tally, any_image):
            return None
        age, reason = now - oldest, f"age: {now - oldest:.0f} s of {self.age_s:.0f} s"
        return _closure(waiting, reason, any_image) if age >= self.age_s else None


def _is_marker(shard: WaitingShard) -> bool:
    """Return whether it is a task manifest, which has no images of its own."""
    return shard.name.endswith(TASK_SUFFIX)


def _has_images(shard: WaitingShard) -> bool:
    return any(shard.counts.values())


def _oldest(waiting: Sequence[WaitingShard]) -> float | None:
    return min((shard.landed_at for shard in waiting if _has_images(shard)), default=None)


def _tally(shards: Iterable[WaitingShard]) -> Counter[str]:
    """Return trainable images by class, those of none left out."""
    tally = Counter[str]()
    for shard in shards:
        tally.update({name: count for name, count in shard.counts.items() if count})
    return tally


def is_trainable(tally: Mapping[str, int], any_image: bool = False) -> bool:
    """Return whether trainable images by class are something to learn from: two classes of two images, as many as a
    metric loss needs for a positive and a negative; with `any_image`, one image, as for a head that is solved."""
    if any_image:
        return any(tally.values())
    return sum(count >= MIN_IMAGES_PER_CLASS for count in tally.values()) >= MIN_CLASSES


def _members(
    waiting: Sequence[WaitingShard], at: int, settled: Settled, owned: Collection[str]
) -> Sequence[WaitingShard] | None:
    """Return what the complete task at `at` consists of; None while a shard that it names has not been indexed."""
    marker = waiting[at]
    if marker.task_shards:
        wanted = {*marker.task_shards, marker.name}
        return None if _missing(waiting, at, settled) else [s for s in waiting if s.name in wanted]
    earlier = waiting[: at + 1]
    if _is_marker(marker):
        return [s for s in earlier if s.shard_id not in owned or s.task == marker.task]
    return [s for s in earlier if s.task == marker.task]


def _manifest_reason(marker: WaitingShard, settled: Settled) -> str:
    reason = f"manifest: task {marker.task or marker.name} is complete"
    gone = [name for name in marker.task_shards if name in settled]
    return f"{reason}, without what was closed before: {_where(marker, settled)}" if gone else reason


def _where(marker: WaitingShard, settled: Settled) -> str:
    """Return where the shards of a manifest are that do not wait any more."""
    gone = [f"{name} ({settled[name]})" for name in marker.task_shards if name in settled]
    return some(gone) if gone else "no image of it waits"


def _announced(waiting: Sequence[WaitingShard], owned: Collection[str]) -> list[str]:
    """Return tasks whose shards wait until somebody says that they are complete."""
    complete = {shard.task for shard in waiting if shard.task_complete}
    images = Counter[str]()
    for shard in waiting:
        if shard.shard_id in owned and shard.task is not None and shard.task not in complete:
            images[shard.task] += sum(shard.counts.values())
    return [f"task {task}: {count} images wait until it is complete" for task, count in images.items()]


def _missing(waiting: Sequence[WaitingShard], at: int, settled: Settled) -> str | None:
    marker = waiting[at]
    here = {shard.name for shard in waiting} | {*settled}
    absent = sorted({*marker.task_shards} - here) if marker.task_complete else []
    if not absent:
        return None
    return f"task {marker.task} is complete but waits for {len(absent)} of its shards: {some(absent)}"


def _closure(
    members: Sequence[WaitingShard], reason: str, any_image: bool, task: str | None = None
) -> Closure:
    tally, ids = _tally(members), tuple(shard.shard_id for shard in members)
    return Closure(ids, reason, tally.total(), len(tally), is_trainable(tally, any_image), task)
