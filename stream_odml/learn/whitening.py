"""Within-class whitening of a first model's embedding: directions in which images of one class differ count for less.

Within-class covariance normalisation (Hatch, Kajarekar & Stolcke, Interspeech 2006), shrunk towards the identity. It is
linear: folded into the head it costs nothing, and what is learnt after it is learnt in the better space.
"""

# c classes   d embedding

from __future__ import annotations

import torch
from torch import Tensor


def within_class_whitening(square_dd: Tensor, sum_cd: Tensor, count_c: Tensor, share: float) -> Tensor | None:
    """W = ((1 - s) I + s S / mean variance of S)^(-1/2), times what keeps the mean of |g|^2; S is the covariance of raw
    g within classes, s = share * n / (n + d) for n degrees of freedom: few images say little of d directions.

    From float64 sums over all images: of outer products of g, of g by class, of images by class. None where nothing
    is to be whitened: no share, no class with two images, or all images of a class alike.
    """
    known = count_c > 0
    between_dd = (sum_cd[known] / count_c[known, None]).T @ sum_cd[known]
    scatter_dd, freedom, d = square_dd - between_dd, float(count_c.sum() - known.sum()), len(square_dd)
    if not share or freedom <= 0 or float(scatter_dd.trace()) <= 1e-9 * float(square_dd.trace()):
        return None
    s = share * freedom / (freedom + d)
    eye_dd = torch.eye(d, dtype=torch.float64)
    variance_d, direction_dd = torch.linalg.eigh((1 - s) * eye_dd + s * d * scatter_dd / scatter_dd.trace())
    W_dd: Tensor = (direction_dd * variance_d.rsqrt()) @ direction_dd.T
    return W_dd * (square_dd.trace() / (W_dd @ square_dd @ W_dd).trace()).sqrt()
