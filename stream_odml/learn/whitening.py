"""Whitening of the embedding: directions in which vectors that should be alike differ count for less.

Within-class covariance normalisation (Hatch, Kajarekar & Stolcke, Interspeech 2006), shrunk towards the identity, and
the same by the covariance of other differences. It is linear: folded into the head it costs nothing, and a stored
vector follows it exactly.
"""

# c classes   d embedding

from __future__ import annotations

import torch
from torch import Tensor

MOST_BY_ERROR = 0.25
"""Share of the error's covariance at most. A weak model moves much, and its map misses above all what it has just
learnt: with a half, a stage after a short first one lost recall."""


def within_class_whitening(square_dd: Tensor, sum_cd: Tensor, count_c: Tensor, share: float) -> Tensor | None:
    """By the covariance of raw g within classes, from float64 sums over all images: of outer products of g, of g by
    class, of images by class."""
    known = count_c > 0
    between_dd = (sum_cd[known] / count_c[known, None]).T @ sum_cd[known]
    return _whitening(square_dd - between_dd, float(count_c.sum() - known.sum()), square_dd, share)


def error_whitening(
    missed_dd: Tensor, n: float, sum_d: Tensor, square_dd: Tensor, weight: float
) -> Tensor | None:
    """By the mean outer product E of the errors of mapped vectors: W ~ (I + k E / v)^(-1/2), v the mean variance of g.
    Where a map follows well, E is small beside v and little changes; E's share is MOST_BY_ERROR at most, and less where
    images are few.

    From float64 sums over n images, of g and of outer products of g.
    """
    scatter = float(square_dd.trace() - sum_d.square().sum() / n)
    if scatter <= 1e-9 * float(square_dd.trace()):
        return None
    # (I + k E / v) / (1 + ratio) is the mixture of `_whitening`.
    ratio = weight * n * float(missed_dd.trace()) / scatter
    share = 1 - 1 / (1 + ratio)  # which an infinite ratio does not make NaN
    return _whitening(n * missed_dd, n, square_dd, min(share, MOST_BY_ERROR))


def _whitening(scatter_dd: Tensor, freedom: float, square_dd: Tensor, share: float) -> Tensor | None:
    """W = ((1 - s) I + s S / mean variance of S)^(-1/2), times what keeps the mean of |g|^2.

    S, of any scale: scatter of what should not count, from n = `freedom` independent differences, and s = share *
    n / (n + d), as a few images say little of d directions. `square_dd`: sum of outer products of the images' g. None
    where nothing is to be whitened: no share, nothing that differs.
    """
    d = len(square_dd)
    if not share or freedom <= 0 or float(scatter_dd.trace()) <= 1e-9 * float(square_dd.trace()):
        return None
    s = share * freedom / (freedom + d)
    mixed_dd = (1 - s) * torch.eye(d, dtype=torch.float64) + s * d * scatter_dd / scatter_dd.trace()
    variance_d, direction_dd = torch.linalg.eigh(mixed_dd)
    W_dd: Tensor = (direction_dd * variance_d.rsqrt()) @ direction_dd.T
    return W_dd * (square_dd.trace() / (W_dd @ square_dd @ W_dd).trace()).sqrt()
