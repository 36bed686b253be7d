"""A stage in the middle of a stream, made up: for costs it does not matter what was learnt before."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import Embedder, build_embedder
from stream_odml.learn.settings import EmbedderSpec, StageSettings, method_settings
from stream_odml.learn.stage import StageLearner
from stream_odml.learn.world import World

STAGES, CLASSES_A_STAGE = 4, 50
ENDLESS = 1_000_000


@dataclass(frozen=True)
class Shape:
    """A backbone at an image size, with the P x K batch that suits it."""

    name: str
    spec: EmbedderSpec
    classes: int
    images: int


SHAPES = (
    Shape("conv4", EmbedderSpec("conv4", 128, 32), 16, 5),
    Shape("mobilenetv2", EmbedderSpec("mobilenetv2", 128, 64), 16, 3),
)


def made_bank(dim: int, seed: int) -> ClassBank:
    """A bank of STAGES x CLASSES_A_STAGE classes, in the space of the last version."""
    rng = np.random.default_rng(seed)
    bank = ClassBank.empty(dim)
    for stage in range(STAGES):
        version, size = f"v{stage}", (CLASSES_A_STAGE, dim)
        means = rng.standard_normal(size, dtype=np.float32)
        names = [f"{stage}/{i}" for i in range(CLASSES_A_STAGE)]
        counts = np.full(CLASSES_A_STAGE, 10)
        bank = bank.moved(0.1 * rng.standard_normal((len(bank), dim)), version) if len(bank) else bank
        bank = bank.with_classes(
            names, version, counts, means, means / np.linalg.norm(means, axis=1, keepdims=True)
        )
    return replace(bank, version=f"v{STAGES - 1}")


def made_batch(shape: Shape, seed: int) -> tuple[Tensor, Tensor]:
    """A P x K batch: pixels uint8 [B, H, W, 3], labels [B]."""
    rng = np.random.default_rng(seed)
    side, total = shape.spec.image_size, shape.classes * shape.images
    pixels = rng.integers(0, 256, (total, side, side, 3), dtype=np.uint8)
    return torch.from_numpy(pixels), torch.arange(shape.classes).repeat_interleave(shape.images)


def made_old(shape: Shape, seed: int) -> Embedder:
    """The parent model."""
    return build_embedder(shape.spec, seed).eval()


def made_learner(
    shape: Shape, method: str, seed: int, world: World | None = None, **changes: object
) -> StageLearner:
    """A learner of `method` in the middle of the stream, that takes as many steps as it is given."""
    common = StageSettings(
        stage_steps=ENDLESS, classes_per_batch=shape.classes, images_per_class=shape.images
    )
    settings = replace(method_settings(method, common), **changes)  # type: ignore[arg-type]
    return StageLearner(
        settings,
        made_old(shape, seed),
        made_bank(shape.spec.dim, seed),
        n_classes=shape.classes,
        version_id="next",
        seed=seed,
        world=world or World(),
    )
