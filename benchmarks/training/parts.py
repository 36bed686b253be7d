"""Where the time of a step goes: each part by itself, and whole steps for each sparseness of wide views and peer."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Report
from benchmarks.training.made import Shape, made_batch, made_learner
from stream_odml.learn.augment import augment
from stream_odml.learn.composites import composites_of_batch
from stream_odml.learn.embedder import as_images
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.learn.stage import StageLearner

SHAPES = (
    Shape("conv4", EmbedderSpec("conv4", 128, 28), 16, 5),
    Shape("mobilenetv2", EmbedderSpec("mobilenetv2", 128, 96), 16, 3),
)
COMPOSITE_EVERY, PEER_EVERY = (2, 4, 8), (5, 8)
PRECISIONS = ("fp32", "bf16")


def measure_parts(report: Report, seed: int) -> None:
    """CPU milliseconds of one core, medians of rounds in which everything takes its turn."""
    torch.set_num_threads(1)
    for shape in SHAPES:
        rounds = 2 if report.quick else 15 if shape is SHAPES[0] else 6
        for what, things in (("part", _parts(shape, seed)), ("step", _steps(shape, seed))):
            found = _in_turn(report, things, f"{shape.name}: {what}s", rounds)
            report.row(part="parts", what=what, backbone=shape.name, image_size=shape.spec.image_size,
                       batch=shape.classes * shape.images, threads=1, cpu_ms=found)  # fmt: skip
            _tell(report, shape, what, found)


def _in_turn(
    report: Report, things: dict[str, Callable[[], object]], what: str, rounds: int
) -> dict[str, float]:
    spent: dict[str, list[float]] = {name: [] for name in things}
    for number in report.track(range(rounds + 1), what):
        for name, thing in things.items():
            began = time.process_time()
            thing()
            if number:  # the first round allocates
                spent[name].append(time.process_time() - began)
    return {name: 1e3 * float(np.median(seconds)) for name, seconds in spent.items()}


def _parts(shape: Shape, seed: int) -> dict[str, Callable[[], object]]:
    """Each part of a step on the plain batch; S, N and O cost in proportion on more or fewer images."""
    pixels, labels = made_batch(shape, seed)
    learner = made_learner(shape, "ours", seed)
    mixed = made_learner(shape, "ours", seed, old_precision="bf16")
    s, total = learner.settings, len(labels)
    images = augment(as_images(pixels), s, seed, 0, start=0, total=total)
    old = learner._old_embeddings(images).clone()
    for _ in range(2):
        learner.step(pixels, labels)  # gives the optimiser its gradients and its state

    def views(every: int) -> Tensor:
        return composites_of_batch(images, replace(s, composite_every=every), seed, 0, start=0, total=total)

    return {
        "pixels to images, augmented": lambda: augment(as_images(pixels), s, seed, 0, start=0, total=total),
        **{f"wide views, every {n}": (lambda n=n: views(n)) for n in COMPOSITE_EVERY},  # type: ignore[misc]
        "S forward": lambda: learner.networks.student(images),
        "S forward and backward": lambda: _there_and_back(learner, images),
        "O forward": lambda: learner._old_embeddings(images),
        "O forward, bf16": lambda: mixed._old_embeddings(images),
        "losses, forward and backward": lambda: _losses(learner, old, labels),
        "optimiser": lambda: learner._optimiser.step(1e-4),
    }


def _there_and_back(learner: StageLearner, images: Tensor) -> None:
    learner.networks.student(images).square().sum().backward()
    learner._optimiser.zero_grad()


def _losses(learner: StageLearner, old_Bd: Tensor, labels: Tensor) -> None:
    from stream_odml.learn.losses import stage_losses

    student, peer = (old_Bd.clone().requires_grad_(True) for _ in range(2))
    half = len(labels) // 2
    losses = stage_losses(
        learner._weights,
        learner._metric,
        labels,
        student,
        peer_Bd=peer,
        old_Bd=old_Bd,
        virtual=learner._virtual,
        directions_Cd=learner._directions,
        composites=(student[:half], old_Bd[:half]),
    )
    torch.stack([loss.double() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]


def _steps(shape: Shape, seed: int) -> dict[str, Callable[[], object]]:
    """Whole steps, with and without the peer: `peer_every` n costs one of n of the first and the rest of the second."""
    pixels, labels = made_batch(shape, seed)

    def stepping(method: str, **changes: Any) -> Callable[[], object]:
        learner = made_learner(shape, method, seed, **changes)
        return lambda: learner.step(pixels, labels)

    things = {"finetune": stepping("finetune")}
    for precision, wide, peer in product(PRECISIONS, (0, *COMPOSITE_EVERY), (True, False)):
        views: dict[str, Any] = {"composite_every": wide} if wide else {"weight_composites": 0.0}
        more: dict[str, Any] = {"peer_every": 1} if peer else {"weight_peer": 0.0}
        name = _name(precision, wide, peer)
        things[name] = stepping("ours", old_precision=precision, **views, **more)
    return things


def _name(precision: str, wide: int, peer: bool) -> str:
    return f"O {precision}, wide {wide or 'none'}, {'peer' if peer else 'no peer'}"


def _tell(report: Report, shape: Shape, what: str, found: dict[str, float]) -> None:
    if what == "part":
        for name, ms in found.items():
            report.say(f"{shape.name}: {name:32} {ms:8.1f} ms")
        return
    for precision, wide, every in product(PRECISIONS, (0, *COMPOSITE_EVERY), PEER_EVERY):
        with_peer, without = (found[_name(precision, wide, peer)] for peer in (True, False))
        ms = without + (with_peer - without) / every
        ratio = ms / found["finetune"]
        setting = f"old_{precision}/wide_{wide or 'none'}/peer_{every}"
        report.say(f"{shape.name}: {setting:32} {ms:8.1f} ms  {ratio:.2f} of a fine-tune's step")
        report.figure(f"{shape.name}/{setting}/over_finetune_step", ratio)
