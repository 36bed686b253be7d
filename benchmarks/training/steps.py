"""The full mutual step (student, old model, peer) and its naive form, over the fine-tune step of the same student."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch

from benchmarks.common import Report
from benchmarks.training.made import SHAPES, Shape, made_batch, made_learner
from benchmarks.training.naive import NaiveStep

STEPS = 5
"""Steps of a round: a multiple of every `peer_every` that is compared, so that a round has its share of the peer."""


def measure_steps(report: Report, seed: int) -> None:
    """Ratios of steps on one core, round by round, for each backbone.

    The mutual step is that of student, old model and peer on the batch; `ours` adds the wide views, which are half
    as many images again for the student and the old model.
    """
    torch.set_num_threads(1)
    for shape in SHAPES:
        rounds = 3 if report.quick else 20 if shape is SHAPES[0] else 8
        ratios = _ratios(report, shape, seed, rounds)
        if shape is SHAPES[0]:
            seconds = float(np.median(report.rows[-1]["step_s"]["ours"]))
            report.figure("train_images_per_s", shape.classes * shape.images / seconds)
        more = "" if shape is SHAPES[0] else f"_{shape.name}"
        report.figure(f"mutual_over_finetune_step{more}", ratios["mutual"])
        report.figure(f"naive_mutual_over_finetune_step{more}", ratios["naive"])
        report.figure(f"ours_with_wide_views_over_finetune_step{more}", ratios["ours"])


def _ratios(report: Report, shape: Shape, seed: int, rounds: int) -> dict[str, float]:
    pixels, labels = made_batch(shape, seed)
    naive = NaiveStep(shape, seed)
    plain = {
        "finetune": made_learner(shape, "finetune", seed),
        "mutual": made_learner(shape, "ours", seed, weight_composites=0.0),
        "mutual_every_step": made_learner(shape, "ours", seed, weight_composites=0.0, peer_every=1),
        "no_peer": made_learner(shape, "no_peer", seed, weight_composites=0.0),
        "ours": made_learner(shape, "ours", seed),
    }
    steps: dict[str, Callable[[], object]] = {
        name: (lambda learner=learner: learner.step(pixels, labels))  # type: ignore[misc]
        for name, learner in plain.items()
    }
    steps["naive"] = lambda: naive.step(pixels, labels)
    wall: dict[str, list[float]] = {name: [] for name in steps}
    for number in report.track(range(rounds + 1), f"{shape.name}: rounds"):
        for name, step in steps.items():
            began = time.perf_counter()
            for _ in range(STEPS):
                step()
            if number:  # the first round allocates
                wall[name].append((time.perf_counter() - began) / STEPS)
    base = np.array(wall["finetune"])
    ratios = {name: float(np.median(np.array(seconds) / base)) for name, seconds in wall.items()}
    report.row(part="steps", backbone=shape.name, image_size=shape.spec.image_size, batch=len(labels),
               threads=1, step_s=wall, over_finetune=ratios)  # fmt: skip
    report.say(f"{shape.name}: " + "  ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items()))
    return ratios
