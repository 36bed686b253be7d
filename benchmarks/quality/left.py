"""What is left of a study to be measured, and about how long that takes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from benchmarks.quality.methods import ALWAYS, EXACT, FROZEN, MOVING, Method
from benchmarks.quality.pseudo_replay import PseudoReplay
from benchmarks.quality.rows import Row
from benchmarks.quality.study import MAPPING, Study


@dataclass(frozen=True)
class Left:
    """What is to be done of a method in a part, and about how many seconds of CPU it takes."""

    method: str
    seeds: tuple[int, ...]
    done: int
    seconds: float


def left_of(
    study: Study, methods: Sequence[Method], seeds: Sequence[int], rows: Sequence[Row]
) -> Iterator[Left]:
    """Yield for each method which seeds are not measured; their time is that of finished runs, or else a guess. A model
    that several methods learn alike is counted with the first."""
    finished = study.rows.finished()
    per_run: dict[tuple[str, str], list[float]] = defaultdict(list)
    for row in rows:
        if row["metric"] == "train_s":
            per_run[row["protocol"], row["method"]].append(row["value"])
    learnt: set[str] = set()
    for method in methods:
        student = shared_student(method)
        is_there = student in learnt
        learnt |= {student} - {""}
        todo = tuple(seed for seed in seeds if study.key(method, seed) not in finished)
        known = per_run.get((study.protocol, method.name))
        stages = len(study.stream(seeds[0]).tasks) - 1
        if known and not is_there:
            one = float(np.median(known)) + _measuring(study, stages)
        else:
            one = guess(study, method, stages, is_there)
        yield Left(method.name, todo, len(seeds) - len(todo), one * len(todo))


def shared_student(method: Method) -> str:
    """Return what names the models that a method trains, where another may learn the same (`Run._twin`); else ""."""
    s, sees_all = method.settings, EXACT.get(method.preset, method.preset) == "joint"
    moves = method.preset in EXACT and not sees_all
    if moves or method.preset in FROZEN or s.weight_repel or s.weight_virtual or s.error_whitening:
        return ""
    return repr((sees_all, {name: value for name, value in asdict(s).items() if name not in MAPPING}))


def guess(study: Study, method: Method, stages: int, is_there: bool = False) -> float:
    """Return seconds of one core for a run without its base stage, from the steps that it takes; none where its models
    are there."""
    step = step_seconds(study)
    if (
        is_there
        or method.preset in FROZEN
        or method.rival is not None
        or method.preset in ("exact_frozen", "exact_pretrained")
    ):
        steps = 0.0
    elif method.preset in MOVING:
        steps = method.settings.stage_steps * stages * 0.3  # it seldom moves its trunk
    else:
        steps = float(method.settings.stage_steps * stages)
    pseudo = 0.0
    if isinstance(method.map_rival, PseudoReplay):
        pseudo = _pushing(study, method.map_rival)
    costly = 1.5 if method.settings.weight_peer or method.preset in ALWAYS else 1.0
    return (
        steps * step * costly + pseudo + _measuring(study, stages) + (20.0 if method.preset in EXACT else 0.0)
    )


_STEP_S: Mapping[str, float] = {"photographs": 0.75, "drawings": 0.08}
"""Seconds of a fine-tune's step on one core of the machine that the results name."""
_EMBED_S: Mapping[str, float] = {"photographs": 0.006, "drawings": 0.0004}
_PUSH_S: Mapping[str, float] = {"photographs": 0.005, "drawings": 0.0004}
"""Of one image by one step, its embedding by both models shared out over the steps."""


def step_seconds(study: Study) -> float:
    """Return the seconds that a step of fine-tuning takes on one core."""
    return _STEP_S["photographs" if study.spec.starts_pretrained else "drawings"]


def _pushing(study: Study, rival: PseudoReplay) -> float:
    """Return seconds to push images of each task towards each class before it."""
    tasks = study.stream(0).tasks
    known = np.cumsum([len(task.arriving) for task in tasks[:-1]])
    pushed = sum(
        int(c) * min(rival.samples, len(task.images)) for c, task in zip(known, tasks[1:], strict=True)
    )
    return pushed * rival.pushes * _PUSH_S["photographs" if study.spec.starts_pretrained else "drawings"]


def _measuring(study: Study, stages: int) -> float:
    """Return seconds to embed what measures after each stage: half of it in the mean."""
    images = len(study.stream(0).measured)
    return _EMBED_S["photographs" if study.spec.starts_pretrained else "drawings"] * images * (stages + 1) / 2
