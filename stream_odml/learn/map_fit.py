"""The drift maps of a stage. The affine one is fitted to the task's images and their cut-mix composites; its ridge is
chosen by the error on classes held out of the fit, as the classes of the gallery are. The kernel one is of some of the
task's images, of all ranks, and what an affine map leaves of each.
"""

# n pairs   m centres   d embedding

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.drift import AffineMap, KernelMap
from stream_odml.learn.moments import PairMoments
from stream_odml.learn.row_buffer import Float32s
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.world import World

FOLDS = 4
RIDGES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 1e6)
"""Candidates of the cross-validation; the last one leaves only a shift."""
DEFAULT_RIDGE = 0.1
"""Used where there are too few classes to hold any out."""


@dataclass(frozen=True, eq=False)
class AffineFit:
    """The affine maps of a stage, and the error of the forward one."""

    forward: AffineMap
    """Parent's space -> child's."""
    backward: AffineMap
    """Child's space -> parent's."""
    missed_dd: Tensor
    """Mean outer product of forward(g_parent) - g_child over images of classes held out of the fit; over all images
    where there are too few classes. The error to expect for a stored vector of an old class."""

    def transformed(self, W_dd: Tensor) -> AffineFit:
        """Return the same maps after the linear transform g -> W g of the child's space."""
        W, there, back = W_dd.numpy(), self.forward, self.backward
        return AffineFit(
            AffineMap(W @ there.A, W @ there.b),
            AffineMap(back.A @ np.linalg.inv(W), back.b),
            W_dd @ self.missed_dd @ W_dd.T,
        )


class MapFit:
    """Pair moments of the images and of their composites, one of each per group of classes (FOLDS groups)."""

    def __init__(self, dim: int) -> None:
        self.images = [PairMoments.empty(dim) for _ in range(FOLDS)]
        self.composites = [PairMoments.empty(dim) for _ in range(FOLDS)]

    def add(self, parent_nd: Tensor, child_nd: Tensor, labels_n: Tensor, *, composites: bool = False) -> None:
        """Add n pairs of raw embeddings, with the labels of their images."""
        fold_n = labels_n.cpu() % FOLDS
        parent, child = parent_nd.double().cpu(), child_nd.double().cpu()
        for fold, moments in enumerate(self.composites if composites else self.images):
            rows = fold_n == fold
            moments.add(parent[rows], child[rows])

    def summed(self, world: World) -> MapFit:
        """Return the sums over all ranks."""
        total = MapFit(self.images[0].dim)
        total.images = [moments.summed(world) for moments in self.images]
        total.composites = [moments.summed(world) for moments in self.composites]
        return total

    def of_images(self) -> PairMoments:
        """Return the moments of the task's own images."""
        return self.images[0].plus(*self.images[1:])

    def fitted(self, ridge: float | None) -> AffineFit:
        """Fit both directions on images and composites, with `ridge` or, for None, `best_ridge`."""
        forward = self.best_ridge() if ridge is None else ridge
        backward = self.best_ridge(backward=True) if ridge is None else ridge
        pairs = self.of_images().plus(*self.composites)
        there = pairs.fit(forward)
        missed = self._missed(forward) if self.can_hold_out else self.of_images().error_matrix(there)
        return AffineFit(there, pairs.fit(backward, backward=True), missed)

    def best_ridge(self, *, backward: bool = False) -> float:
        """Return the argmin over RIDGES of the mean square error on images of held-out classes."""
        if not self.can_hold_out:
            return DEFAULT_RIDGE
        errors = np.zeros(len(RIDGES))
        for images, others in self._folds():
            errors += images.n * np.array(others.errors(RIDGES, images, backward=backward))
        return RIDGES[int(errors.argmin())]

    @property
    def can_hold_out(self) -> bool:
        """Return whether two groups or more hold classes, so that a fit can be evaluated on one held out of it."""
        return len(self._held_out()) > 1

    def _held_out(self) -> list[int]:
        return [fold for fold in range(FOLDS) if self.images[fold].n]

    def _folds(self) -> Iterator[tuple[PairMoments, PairMoments]]:
        """Yield the images of a group of classes, and images and composites of all others."""
        for fold in self._held_out():
            rest = [of[i] for of in (self.images, self.composites) for i in range(FOLDS) if i != fold]
            yield self.images[fold], rest[0].plus(*rest[1:])

    def _missed(self, ridge: float) -> Tensor:
        """Return the mean outer product of what the forward map misses on held-out classes."""
        missed = [images.n * images.error_matrix(others.fit(ridge)) for images, others in self._folds()]
        return torch.stack(missed).sum(0) / self.of_images().n


@dataclass(frozen=True, eq=False)
class KernelFit:
    """Centres of kernel maps as parent and child embed them, raw g, and the labels of their images."""

    settings: StageSettings
    parents_md: Float32s
    children_md: Float32s
    labels_m: NDArray[np.int64]

    @classmethod
    def gathered(
        cls,
        settings: StageSettings,
        parents_nd: Float32s,
        children_nd: Float32s,
        labels_n: Tensor,
        total: int,
        world: World,
    ) -> KernelFit:
        """Gather every k-th of each rank's images, `total` on all: at most `kernel_pairs`, and one more per rank."""
        every = slice(None, None, -(-total // settings.kernel_pairs))

        def of_all_ranks(rows: Tensor) -> Tensor:
            return world.gather(rows.to(world.device)).cpu()

        # Copied out of a memory map, read-only perhaps.
        parents, children = (torch.from_numpy(np.array(rows[every])) for rows in (parents_nd, children_nd))
        return cls(
            settings,
            of_all_ranks(parents).numpy(),
            of_all_ranks(children).numpy(),
            of_all_ranks(labels_n[every]).numpy(),
        )

    def fit(
        self, base: AffineMap | None, *, backward: bool = False, kept: NDArray[np.bool_] | slice = slice(None)
    ) -> KernelMap:
        """Fit the residuals that `base` (default: the identity) leaves between parent and child, or back, of the
        centres that are `kept`."""
        s = self.settings
        x_md, y_md = self.parents_md[kept], self.children_md[kept]
        if backward:
            x_md, y_md = y_md, x_md
        residuals_md = y_md - (base.apply(x_md) if base else x_md)
        return KernelMap(x_md, residuals_md, base, s.kernel, s.kernel_width, s.kernel_floor)

    def held_out_error(self, base: AffineMap | None) -> float:
        """Return the mean of |map(g_parent) - g_child|^2 over centres of classes of which the forward map has no
        other; over all centres where there are too few classes. The base has seen them all."""
        fold_m = self.labels_m % FOLDS
        groups = [fold_m == fold for fold in np.unique(fold_m)]
        total = 0.0
        for tried in groups:
            kept = ~tried if len(groups) > 1 else tried
            mapped = self.fit(base, kept=kept).apply(self.parents_md[tried])
            total += float(np.square(mapped.astype(np.float64) - self.children_md[tried]).sum())
        return total / max(len(self.labels_m), 1)
