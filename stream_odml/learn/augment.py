"""Random views of a batch, drawn once for S, O and N: a pure function of (seed, step, row of the global batch).

So a resumed stage sees the same views, and N ranks see those that one rank would.
"""

# b rows of this rank   B rows of all ranks

from __future__ import annotations

import importlib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stream_odml.learn.settings import StageSettings

_DEGREES = 12.0
_SHIFT = 0.1
_ZOOM = 0.2
_COLOUR = 0.3


def step_seed(seed: int, *parts: int) -> int:
    """Return a 63-bit seed for one purpose and step, independent of its neighbours."""
    return int(np.random.SeedSequence([seed, *parts]).generate_state(1, np.uint64)[0] >> 1)


def augment(
    images_b3HW: Tensor, settings: StageSettings, seed: int, step: int, *, start: int, total: int
) -> Tensor:
    """Return random views [b,3,H,W] of images in 0..1, for rows start..start+b of a global batch of `total` rows."""
    if settings.augment == 0 and settings.augment_colour == 0 and not settings.augment_flip:
        return images_b3HW
    # Drawn for the whole batch on the CPU, whose generator gives the same numbers on every machine.
    generator = torch.Generator().manual_seed(step_seed(seed, 1, step))
    draws = torch.rand(total, 9, generator=generator) * 2 - 1
    draws_b = draws[start : start + len(images_b3HW)].to(images_b3HW.device)
    if settings.augment or settings.augment_flip:
        images_b3HW = _move(images_b3HW, draws_b[:, :5], settings)
    if settings.augment_colour:
        images_b3HW = _tint(images_b3HW, 1 + _COLOUR * settings.augment_colour * draws_b[:, 5:8])
    return images_b3HW


def _move(images: Tensor, draws_b5: Tensor, settings: StageSettings) -> Tensor:
    """Rotate, shift, zoom and mirror in one resampling; the border is continued outwards."""
    transform: Any = importlib.import_module("kornia.geometry.transform")
    _, _, height, width = images.shape
    angle = draws_b5[:, 0] * math.radians(_DEGREES) * settings.augment
    zoom = torch.exp(draws_b5[:, 1] * math.log(1 + _ZOOM) * settings.augment)
    mirror = torch.where(draws_b5[:, 4] > 0, -1.0, 1.0) if settings.augment_flip else torch.ones_like(angle)
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    linear = torch.stack([torch.stack([cos * mirror, -sin], 1), torch.stack([sin * mirror, cos], 1)], 1)
    centre = torch.tensor([(width - 1) / 2, (height - 1) / 2], device=images.device)
    sides = torch.tensor([width, height], device=images.device)
    shift = centre + draws_b5[:, 2:4] * _SHIFT * settings.augment * sides - linear @ centre
    matrix = torch.cat([linear, shift[:, :, None]], 2)
    moved: Tensor = transform.warp_affine(images, matrix, (height, width), padding_mode="border")
    return moved.contiguous(memory_format=torch.channels_last)


def _tint(images: Tensor, factors_b3: Tensor) -> Tensor:
    """Change brightness, contrast and saturation."""
    enhance: Any = importlib.import_module("kornia.enhance")
    brightness, contrast, saturation = factors_b3.clamp_min(0).unbind(1)
    images = enhance.adjust_brightness_accumulative(images, brightness)
    images = enhance.adjust_contrast_with_mean_subtraction(images, contrast)
    tinted: Tensor = enhance.adjust_saturation_with_gray_subtraction(images, saturation)
    return tinted.clamp(0, 1).contiguous(memory_format=torch.channels_last)
