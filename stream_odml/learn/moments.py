"""Second moments of pairs of embeddings: all that the affine drift maps need, one pass, a sum over ranks."""

# n pairs   d embedding

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from stream_odml.learn.drift import AffineMap
from stream_odml.learn.world import World


@dataclass
class PairMoments:
    """n, sums and products of (g_parent, g_child), in float64 on the CPU."""

    n: float
    sum_2d: Tensor
    """Sum of [g_parent, g_child]."""
    square_2d2d: Tensor
    """Sum of outer products of [g_parent, g_child] with itself."""

    @classmethod
    def empty(cls, dim: int) -> PairMoments:
        """Return the moments of no pair."""
        return cls(
            0.0, torch.zeros(2 * dim, dtype=torch.float64), torch.zeros(2 * dim, 2 * dim, dtype=torch.float64)
        )

    def add(self, parent_nd: Tensor, child_nd: Tensor) -> None:
        """Add n pairs."""
        both = torch.cat([parent_nd, child_nd], dim=1).double().cpu()
        self.n += len(both)
        self.sum_2d += both.sum(0)
        self.square_2d2d += both.T @ both

    def summed(self, world: World) -> PairMoments:
        """Return the sums over all ranks."""
        flat = torch.cat(
            [torch.tensor([self.n], dtype=torch.float64), self.sum_2d, self.square_2d2d.flatten()]
        )
        flat = world.sum(flat)
        width = len(self.sum_2d)
        return PairMoments(float(flat[0]), flat[1 : 1 + width], flat[1 + width :].view(width, width))

    def plus(self, *others: PairMoments) -> PairMoments:
        """Return the moments of the pairs of all."""
        total = PairMoments(self.n, self.sum_2d.clone(), self.square_2d2d.clone())
        for other in others:
            total.n += other.n
            total.sum_2d += other.sum_2d
            total.square_2d2d += other.square_2d2d
        return total

    def mean_drift(self) -> Tensor:
        """Return the mean of g_child - g_parent, [d]."""
        d = len(self.sum_2d) // 2
        return (self.sum_2d[d:] - self.sum_2d[:d]) / max(self.n, 1.0)

    def drift(self) -> float:
        """Return the sum of |g_child - g_parent|^2."""
        d = len(self.sum_2d) // 2
        square = self.square_2d2d
        return max(float(square.trace() - 2 * square[:d, d:].trace()), 0.0)

    def fit(self, ridge: float, *, backward: bool = False) -> AffineMap:
        """Solve argmin Σ |A x + b - y|^2 + r |A - I|^2 in closed form; x -> y is parent -> child, or the reverse. r =
        ridge * n * (mean variance of x), so ridge has no unit. No pair, or x without variance: a shift."""
        d = len(self.sum_2d) // 2
        n = max(self.n, 1.0)
        mean = self.sum_2d / n
        cov = self.square_2d2d / n - torch.outer(mean, mean)
        x, y = (slice(d, 2 * d), slice(0, d)) if backward else (slice(0, d), slice(d, 2 * d))
        r = _ridge(ridge, cov[x, x])
        eye = torch.eye(d, dtype=torch.float64)
        A = torch.linalg.solve(cov[x, x] + r * eye, (cov[y, x] + r * eye).T).T
        return AffineMap(np.ascontiguousarray(A.numpy()), (mean[y] - A @ mean[x]).numpy())

    def errors(self, ridges: Sequence[float], held: PairMoments, *, backward: bool = False) -> list[float]:
        """Return, for each ridge, the mean of |A x + b - y|^2 over `held` pairs of the map that `fit` gives here.

        With A = I + B and U diag(l) Uᵀ the covariance of x, B U = cov(y - x, x) U / (l + r): one decomposition serves
        all ridges, which in a thousand dimensions takes a tenth of the time of a fit for each.
        """
        d = len(self.sum_2d) // 2
        n, m = max(self.n, 1.0), max(held.n, 1.0)
        x, y = (slice(d, 2 * d), slice(0, d)) if backward else (slice(0, d), slice(d, 2 * d))
        mean_2d = self.sum_2d / n
        cov = self.square_2d2d / n - torch.outer(mean_2d, mean_2d)
        l_d, U_dd = torch.linalg.eigh(cov[x, x])
        G_dd = (cov[y, x] - cov[x, x]) @ U_dd
        # Second moments of `held`, about the means that the map was fitted with.
        seen_2d = held.sum_2d / m
        about = held.square_2d2d / m - torch.outer(mean_2d, seen_2d) - torch.outer(seen_2d, mean_2d)
        about += torch.outer(mean_2d, mean_2d)
        xx, yx, yy = about[x, x], about[y, x], about[y, y]
        K_dd = (G_dd.T @ G_dd) * (U_dd.T @ xx @ U_dd)
        L_d = (G_dd * ((yx - xx) @ U_dd)).sum(0)
        drift = float(yy.trace() - 2 * yx.trace() + xx.trace())
        errors = []
        for ridge in ridges:
            r = _ridge(ridge, cov[x, x])
            scale_d = 1 / (l_d.clamp_min(0) + r)
            errors.append(float(scale_d @ K_dd @ scale_d - 2 * scale_d @ L_d) + drift)
        return errors

    def unexplained(self, forward: AffineMap) -> float:
        """Return the share of the drift's mean square that the forward map leaves: 0 is perfect, 1 as the identity."""
        total = self.drift() / max(self.n, 1.0)
        return float(self.error_matrix(forward).trace()) / total if total > 1e-12 else 0.0

    def error_matrix(self, forward: AffineMap) -> Tensor:
        """Return the mean outer product of forward(g_parent) - g_child over the pairs, [d, d]."""
        d = len(self.sum_2d) // 2
        second = torch.cat([torch.cat([self.square_2d2d, self.sum_2d[:, None]], 1),
                            torch.cat([self.sum_2d, torch.tensor([self.n])])[None]]) / max(self.n, 1.0)  # fmt: skip
        A, b = torch.from_numpy(forward.A), torch.from_numpy(forward.b)
        left = torch.cat([-A, torch.eye(d, dtype=torch.float64), -b[:, None]], 1)
        return left @ second @ left.T


def _ridge(share: float, cov_dd: Tensor) -> float:
    """Return r of a ridge without unit; a tiny floor keeps the system regular when all images are alike."""
    variance_d = cov_dd.diagonal()
    return max(share * float(variance_d.mean()), 1e-9 * float(variance_d.max()), 1e-12)
