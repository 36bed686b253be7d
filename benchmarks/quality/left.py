"""What is left of a study to be measured, and about how long that takes."""

from __future__ import annotations

import functools
import statistics
import time
import timeit
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from benchmarks.quality.methods import ALWAYS, EXACT, FROZEN, MOVING, Method
from benchmarks.quality.pseudo_replay import PseudoReplay
from benchmarks.quality.rows import Row
from benchmarks.quality.study import MAPPING, Study
from stream_odml.learn.embedder import build_embedder
from stream_odml.learn.networks import channels_last
from stream_odml.learn.settings import EmbedderSpec


@dataclass(frozen=True)
class Left:
    """What is to be done of a method in a part, and about how many seconds of CPU it takes."""

    method: str
    seeds: tuple[int, ...]
    done: int
    seconds: float


def left_of(
    study: Study, methods: Sequence[Method], seeds: Sequence[int], rows: Sequence[Row], listed: set[str]
) -> Iterator[Left]:
    """Yield for each method which seeds are not measured; their time is that of finished runs, or else a guess. A model
    that several methods learn alike is counted with the first. `listed`: keys of runs that another part does, to which
    those of this part are added."""
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
        keys = {seed: study.key(method, seed) for seed in seeds}
        todo = tuple(seed for seed, key in keys.items() if key not in finished | listed)
        listed |= set(keys.values())
        known = per_run.get((study.protocol, method.name))
        stages = len(study.stream(seeds[0]).tasks) - 1
        if known and not is_there:
            one = float(np.median(known)) + _measuring(study, stages)
        else:
            one = guess(study, method, stages, is_there)
        yield Left(method.name, todo, len(finished & set(keys.values())), one * len(todo))


def shared_student(method: Method) -> str:
    """Return what names the models that a method trains, where another may learn the same (`Run._twin`), or the trunk
    that others keep too (`ExactRun`); else ""."""
    if method.keeps_base_trunk:
        return "trunk of the base stage"
    s, sees_all = method.settings, EXACT.get(method.preset, method.preset) == "joint"
    moves = method.preset in EXACT and not sees_all
    if moves or method.preset in FROZEN or s.weight_repel or s.weight_virtual or s.error_whitening:
        return ""
    return repr((sees_all, {name: value for name, value in asdict(s).items() if name not in MAPPING}))


def guess(study: Study, method: Method, stages: int, is_there: bool = False) -> float:
    """Return seconds of one core for a run without its base stage, from the steps that it takes; none where its models
    are there."""
    speed, moves = speed_of(study), method.preset in (*MOVING, *ALWAYS)
    if is_there or method.keeps_base_trunk or method.preset in (*FROZEN, "exact_pretrained"):
        steps = 0.0
    else:
        steps = float(method.settings.stage_steps * stages)
        if method.preset in MOVING and study.spec.starts_pretrained:
            steps /= 2  # about as often as its rule lets a pretrained trunk move
    pushed = _pushed(study, method.map_rival) if isinstance(method.map_rival, PseudoReplay) else 0
    networks = 2.1 if method.settings.weight_peer or method.preset in ALWAYS else 1.0
    moved_s, solved_s = _LAST_PASS_S["photographs" if study.spec.starts_pretrained else "drawings"]
    last_pass = moved_s if moves else solved_s if method.preset in EXACT else 0.0
    pushing = pushed * _PUSHED * speed.image_s
    measuring = 0.0 if is_there and method.keeps_base_trunk else _measuring(study, stages)
    return steps * networks * speed.step_s + pushing + last_pass * stages + measuring


_LAST_PASS_S: Mapping[str, tuple[float, float]] = {"photographs": (15.0, 3.0), "drawings": (4.0, 1.5)}
"""About, of a stage: a map chosen in the trunk's dimensions with a head, and a head alone."""
_PUSHED = 3
"""Times as long as to embed an image takes a step that pushes it, which goes back through the network too."""


@dataclass(frozen=True)
class Speed:
    """Seconds of one core for a step of fine-tuning, and for an image to be embedded."""

    step_s: float
    image_s: float


def speed_of(study: Study) -> Speed:
    """Return how fast this machine is, by a few steps of the study's network."""
    return _speed(study.spec, study.common.classes_per_batch * study.common.images_per_class, study.device)


@functools.cache
def _speed(spec: EmbedderSpec, batch: int, device: str) -> Speed:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        embedder = build_embedder(spec, 0).to(device)
        channels_last(embedder)  # as training and measuring have it: 1.7 times as fast for photographs
        images = torch.rand(batch, 3, spec.image_size, spec.image_size, device=device)
        images = images.contiguous(memory_format=torch.channels_last)

        def step() -> None:
            embedder(images).sum().backward()

        def look() -> None:
            with torch.no_grad():
                embedder(images).sum().item()

        return Speed(_seconds(step), _seconds(look) / batch)
    finally:
        torch.set_num_threads(threads)


def _seconds(run: Callable[[], None]) -> float:
    """Return the median of three runs, after one that warms up: of CPU, whatever else the machine does."""
    run()
    return statistics.median(timeit.repeat(run, timer=time.process_time, number=1, repeat=3))


def _measuring(study: Study, stages: int) -> float:
    """Return seconds to embed what measures after each stage: half of it in the mean."""
    return speed_of(study).image_s * len(study.stream(0).measured) * (stages + 1) / 2


def _pushed(study: Study, rival: PseudoReplay) -> int:
    """Return how often an image is pushed: of each task towards each class before it."""
    tasks = study.stream(0).tasks
    known = np.cumsum([len(task.arriving) for task in tasks[:-1]])
    images = (min(rival.samples, len(task.images)) for task in tasks[1:])
    return sum(int(c) * n for c, n in zip(known, images, strict=True)) * rival.pushes
