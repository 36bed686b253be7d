"""Unit vectors and cosine similarities of raw embeddings. A zero vector stays zero and gets no gradient: never NaN."""

# B rows   d embedding

from __future__ import annotations

import torch
from torch import Tensor

_EPS = 1e-6


def unit(g_Bd: Tensor) -> Tensor:
    """Return z = g / |g|, rows of [B, d]; rows shorter than 1e-6 become zero and pass no gradient."""
    norm_B1 = torch.linalg.vector_norm(g_Bd, dim=-1, keepdim=True)
    z_Bd: Tensor = g_Bd / norm_B1.clamp_min(_EPS) * (norm_B1 > _EPS)
    return z_Bd


def gram(z_Bd: Tensor) -> Tensor:
    """Return the similarities Z Zᵀ, [B, B]."""
    return z_Bd @ z_Bd.mT
