"""A step on an accelerator: fp32 and bf16 in turn, at the sizes of the study and at those of larger photographs."""

from __future__ import annotations

import time

import numpy as np
import torch

from benchmarks.common import Report
from benchmarks.training.made import Shape, made_batch, made_learner
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.learn.world import World

SHAPES = (
    Shape("mobilenetv2_96", EmbedderSpec("mobilenetv2", 128, 96), 10, 4),
    Shape("mobilenetv2_224", EmbedderSpec("mobilenetv2", 128, 224), 32, 8),
)
METHODS = ("finetune", "distilled")
STEPS = 10
"""Steps of a round: a multiple of `peer_every`, so that a round has its share of the peer."""


def measure_device_steps(report: Report, device: str, seed: int) -> None:
    """Median seconds of a step by shape, method and precision, round by round in turn."""
    if device == "cpu":
        report.say("device: none was named with --device; nothing measured")
        return
    for shape in SHAPES:
        pixels, labels = made_batch(shape, seed)
        learners = {
            (method, precision): made_learner(
                shape, method, seed, World.current(device), precision=precision, old_precision=precision
            )
            for method in METHODS
            for precision in ("fp32", "bf16")
        }
        wall: dict[tuple[str, str], list[float]] = {case: [] for case in learners}
        for number in report.track(range(2 if report.quick else 7), f"{shape.name}: rounds"):
            for case, learner in learners.items():
                began = time.perf_counter()
                for _ in range(STEPS):
                    learner.step(pixels, labels)  # its report waits for the device
                torch.accelerator.synchronize()
                if number:  # the first round chooses kernels and allocates
                    wall[case].append((time.perf_counter() - began) / STEPS)
        for method in METHODS:
            fp32, bf16 = (np.array(wall[method, precision]) for precision in ("fp32", "bf16"))
            report.figure(f"{method}_step_s_{shape.name}_fp32", float(np.median(fp32)))
            report.figure(f"{method}_step_s_{shape.name}_bf16", float(np.median(bf16)))
            report.figure(f"{method}_bf16_over_fp32_{shape.name}", float(np.median(bf16 / fp32)))
        report.row(
            part="device", device=device, backbone=shape.name, batch=len(labels),
            step_s={f"{method} {precision}": seconds for (method, precision), seconds in wall.items()},
        )  # fmt: skip
