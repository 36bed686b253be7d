"""A tiny stage that learns in milliseconds: 16-pixel pictures of oriented gratings, a class an orientation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import Embedder, build_embedder
from stream_odml.learn.settings import EmbedderSpec, StageSettings
from stream_odml.learn.stage import StageLearner, StageOutcome
from stream_odml.learn.world import World

SPEC = EmbedderSpec(dim=8, image_size=16)
SETTINGS = StageSettings(base_steps=6, stage_steps=6, warmup_steps=2, classes_per_batch=4, images_per_class=4)
CLASSES, IMAGES = 6, 8


def task(t: int) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[str]]:
    """(pixels [48,16,16,3], labels, class names) of task t."""
    rng = np.random.default_rng([7, t])
    y, x = np.mgrid[:16, :16]
    pixels, labels = [], np.repeat(np.arange(CLASSES), IMAGES)
    for c in labels:
        angle = np.pi * (t + c / CLASSES) / 4 + rng.normal() * 0.02
        wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * (0.5 + 0.15 * c) + rng.random() * 6)
        pixels.append(
            np.repeat(((wave + 1) * 127 + rng.normal(size=wave.shape) * 5).clip(0, 255)[..., None], 3, 2)
        )
    return np.stack(pixels).astype(np.uint8), labels, [f"t{t}c{c}" for c in range(CLASSES)]


def batch(t: int, step: int) -> tuple[Tensor, Tensor]:
    """A P x K batch of task t, of 4 classes x 4 images."""
    pixels, labels, _ = task(t)
    rng = np.random.default_rng([11, t, step])
    classes = rng.choice(CLASSES, 4, replace=False)
    rows = np.concatenate([rng.choice(np.flatnonzero(labels == c), 4, replace=False) for c in classes])
    return torch.from_numpy(pixels[rows]), torch.from_numpy(labels[rows])


def learner(
    t: int, old: Embedder, bank: ClassBank, settings: StageSettings = SETTINGS, world: World | None = None
) -> StageLearner:
    """The learner of task t."""
    return StageLearner(
        settings, old, bank, n_classes=CLASSES, version_id=f"v{t + 1}", seed=t, world=world or World()
    )


def finish(stage: StageLearner, t: int, rank: int = 0, ranks: int = 1) -> StageOutcome:
    """The finish pass over this rank's share of task t, in batches of 10."""
    pixels, labels, names = task(t)
    mine = np.arange(len(labels))[rank::ranks]
    parts = np.array_split(mine, 5)
    return stage.finish(((pixels[p], labels[p], p) for p in parts), names)


def learn(t: int, old: Embedder, bank: ClassBank, settings: StageSettings = SETTINGS) -> StageOutcome:
    """Task t from beginning to end."""
    stage = learner(t, old, bank, settings)
    for step in range(stage.total_steps):
        stage.step(*batch(t, step))
    return finish(stage, t)


def after(tasks: int, **changes: object) -> tuple[Embedder, ClassBank]:
    """The model and the bank after so many tasks."""
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    old, bank = build_embedder(SPEC, 0), ClassBank.empty(SPEC.dim)
    for t in range(tasks):
        outcome = learn(t, old, bank, settings)
        old, bank = outcome.student, outcome.bank
    return old, bank
