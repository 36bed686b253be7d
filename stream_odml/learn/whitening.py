"""Whitening of the embedding: directions in which vectors of one class differ are scaled down.

Within-class covariance normalisation (Hatch, Kajarekar & Stolcke, Interspeech 2006), shrunk towards the identity, and
the same by the covariance of other differences. It is linear: folded into the head it costs nothing, and a stored
vector follows it exactly.
"""

# c classes   d embedding

from __future__ import annotations

import torch
from torch import Tensor

MAX_ERROR_SHARE = 0.25
"""Maximum share of the error's covariance. A weak model moves much, and its map's error is largest on what it has just
learnt: with 0.5, a stage after a short first one lost recall."""


def within_class_whitening(square_dd: Tensor, sum_cd: Tensor, count_c: Tensor, share: float) -> Tensor | None:
    """Return W by the covariance of raw g within classes; None where there is nothing to whiten. From float64 sums over
    all images: outer products of g, g by class, images by class."""
    known = count_c > 0
    between_dd = (sum_cd[known] / count_c[known, None]).T @ sum_cd[known]
    return _whitening(square_dd - between_dd, float(count_c.sum() - known.sum()), square_dd, share)


def error_whitening(
    missed_dd: Tensor, n: float, sum_d: Tensor, square_dd: Tensor, weight: float
) -> Tensor | None:
    """Return W ~ (I + k E / v)^(-1/2): E the mean outer product of the map's errors, v the mean variance of g.

    Where the map is accurate, E is small beside v and W is near the identity. E's share is at most MAX_ERROR_SHARE,
    and less where images are few. From float64 sums over n images, of g and of outer products of g.
    """
    scatter = float(square_dd.trace() - sum_d.square().sum() / n)
    if scatter <= 1e-9 * float(square_dd.trace()):
        return None
    # (I + k E / v) / (1 + ratio) is the mixture of `_whitening`.
    ratio = weight * n * float(missed_dd.trace()) / scatter
    # In this form an infinite ratio does not become NaN.
    share = 1 - 1 / (1 + ratio)
    return _whitening(n * missed_dd, n, square_dd, min(share, MAX_ERROR_SHARE))


def _whitening(scatter_dd: Tensor, freedom: float, square_dd: Tensor, share: float) -> Tensor | None:
    """Return W = ((1 - s) I + s S / mean variance of S)^(-1/2), scaled to keep the mean of |g|^2.

    S, of any scale: the scatter to whiten, from n = `freedom` independent differences; s = share * n / (n + d), as few
    images determine few of d directions. `square_dd`: sum of outer products of the images' g. None where `share` is 0
    or S is zero.
    """
    d = len(square_dd)
    if not share or freedom <= 0 or float(scatter_dd.trace()) <= 1e-9 * float(square_dd.trace()):
        return None
    s = share * freedom / (freedom + d)
    mixed_dd = (1 - s) * torch.eye(d, dtype=torch.float64) + s * d * scatter_dd / scatter_dd.trace()
    variance_d, direction_dd = torch.linalg.eigh(mixed_dd)
    W_dd: Tensor = (direction_dd * variance_d.rsqrt()) @ direction_dd.T
    return W_dd * (square_dd.trace() / (W_dd @ square_dd @ W_dd).trace()).sqrt()
