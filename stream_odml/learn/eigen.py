"""The directions in which a scatter is largest, fast for large ones, and the same whichever solver finds them."""

from __future__ import annotations

import numpy as np

from stream_odml.learn.lift import Float64s

_SMALL, _SPARE, _ROUNDS = 512, 32, 8
"""Matrices up to which all eigenvalues are computed; of the iteration, spare directions and rounds."""


def leading(scatter_EE: Float64s, k: int) -> tuple[Float64s, Float64s]:
    """Return the k largest eigenvalues, largest first, and their directions [E, k].

    Of large matrices by block power iteration from a fixed start, which takes a fraction of the time. Directions about
    the k-th, of nearly equal variance, are then mixed with those that just miss being among the k.
    """
    E, wide = len(scatter_EE), k + _SPARE
    scatter_EE = (scatter_EE + scatter_EE.T) / 2
    if max(_SMALL, 4 * wide) >= E:
        variance_E, direction_EE = np.linalg.eigh(scatter_EE)
        return variance_E[::-1][:k], signed(direction_EE[:, ::-1][:, :k])
    block_Ew: Float64s = np.random.default_rng(0).standard_normal((E, wide))
    for _ in range(_ROUNDS):
        block_Ew = np.linalg.qr(scatter_EE @ block_Ew)[0]
    variance_w, mix_ww = np.linalg.eigh(block_Ew.T @ scatter_EE @ block_Ew)
    return variance_w[::-1][:k], signed(block_Ew @ mix_ww[:, ::-1][:, :k])


def signed(direction_Ek: Float64s) -> Float64s:
    """Return the directions with the largest entry positive: solvers leave the sign open."""
    largest_1k = np.abs(direction_Ek).argmax(axis=0)[None]
    signed_Ek: Float64s = direction_Ek * np.sign(np.take_along_axis(direction_Ek, largest_1k, axis=0))
    return signed_Ek
