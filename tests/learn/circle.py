"""Points on a circle: similarities are cosines of angle differences, which anyone can check by eye."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def on_circle(*degrees: float) -> Tensor:
    """Unit vectors [n, 2] at the given angles, float64."""
    angles = torch.tensor(degrees, dtype=torch.float64) * math.pi / 180
    return torch.stack([angles.cos(), angles.sin()], 1)


def cos(a: float, b: float) -> float:
    """Cosine of the angle between two directions in degrees."""
    return math.cos(math.radians(a - b))
