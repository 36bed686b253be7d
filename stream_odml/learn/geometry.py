"""Unit vectors and cosine similarities of raw embeddings, and kernels between directions. A zero vector stays zero and
gets no gradient: never NaN.
"""

# B, n rows   C centres   d embedding

from __future__ import annotations

import torch
from torch import Tensor

from stream_odml.learn.settings import KernelName

_EPS = 1e-6


def unit(g_Bd: Tensor) -> Tensor:
    """Return z = g / |g|, rows of [B, d]; rows shorter than 1e-6 become zero and pass no gradient."""
    norm_B1 = torch.linalg.vector_norm(g_Bd, dim=-1, keepdim=True)
    z_Bd: Tensor = g_Bd / norm_B1.clamp_min(_EPS) * (norm_B1 > _EPS)
    return z_Bd


def gram(z_Bd: Tensor) -> Tensor:
    """Return the similarities Z Zᵀ, [B, B]."""
    return z_Bd @ z_Bd.mT


def kernel_weights(z_nd: Tensor, u_Cd: Tensor, kernel: KernelName, width: float) -> Tensor:
    """Return w[i, c], the similarity of row i to centre c, [n, C]; rows and centres are normalised here.

    cosine: cos; clamped: max(cos, 0); softmax: exp((cos - 1) / width), whose normalised form is softmax(cos /
    width); gaussian: exp(-|z - u|^2 / 2 width^2), Yu et al., Semantic Drift Compensation (CVPR 2020).
    """
    return weights_of(unit(z_nd) @ unit(u_Cd).T, kernel, width)


def weights_of(cos_nC: Tensor, kernel: KernelName, width: float) -> Tensor:
    """Compute `kernel_weights` from cosines, in place: for many rows a pass over fresh memory costs as much as a
    tenth of the product that made them."""
    if kernel == "cosine":
        return cos_nC
    if kernel == "clamped":
        return cos_nC.clamp_min_(0)
    if kernel == "softmax":
        return cos_nC.sub_(1).div_(width).exp_()
    return cos_nC.sub_(1).div_(width**2).exp_()  # |z - u|^2 = 2 - 2 cos


def weighted_mean(
    num_nd: Tensor, total_n: Tensor, absolute_n: Tensor, floor: float, fallback_d: Tensor
) -> Tensor:
    """Return num / total row by row, [n, d]; rows with total < floor * sum|w|, or without any weight, get the fallback.

    Cosine weights can sum to about zero, where the quotient explodes: sum(w) / sum(|w|) measures that,
    whatever the scale of the kernel, and is 1 for the positive ones.
    """
    usable_n = (absolute_n > 1e-30) & (total_n >= floor * absolute_n) & (total_n > 0)
    quotient_nd = num_nd / torch.where(usable_n, total_n, torch.ones_like(total_n))[:, None]
    return torch.where(usable_n[:, None], quotient_nd, fallback_d)


def kernel_mean(w_nC: Tensor, values_Cd: Tensor, floor: float) -> Tensor:
    """Return the mean of the C values weighted by each row's kernel weights, [n, d]; falls back to their plain mean."""
    absolute_n = torch.linalg.vector_norm(w_nC, 1, dim=1)
    return weighted_mean(w_nC @ values_Cd, w_nC.sum(1), absolute_n, floor, values_Cd.mean(0))
