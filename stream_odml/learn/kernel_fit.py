"""The kernel drift map of a stage: some of the task's images, of all ranks, and what an affine map leaves of each."""

# m centres   d embedding

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.drift import AffineMap, KernelMap
from stream_odml.learn.map_fit import FOLDS
from stream_odml.learn.row_buffer import Float32s
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.world import World


@dataclass(frozen=True, eq=False)
class KernelFit:
    """Anchors as parent and child embed them, raw g, and the labels of their images."""

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

    def fit(self, base: AffineMap | None, *, backward: bool = False) -> KernelMap:
        """Fit the residuals that `base` (default: the identity) leaves between parent and child, or back."""
        return self._fit(base, np.ones(len(self.labels_m), bool), backward)

    def held_out_error(self, base: AffineMap | None) -> float:
        """Return the mean of |map(g_parent) - g_child|^2 over centres of classes that the forward map has no anchor
        of; of all centres where there are too few classes. The base has seen them all."""
        fold_m = self.labels_m % FOLDS
        groups = [fold_m == fold for fold in np.unique(fold_m)]
        total = 0.0
        for tried in groups:
            kept = ~tried if len(groups) > 1 else tried
            mapped = self._fit(base, kept, backward=False).apply(self.parents_md[tried])
            total += float(np.square(mapped.astype(np.float64) - self.children_md[tried]).sum())
        return total / max(len(self.labels_m), 1)

    def _fit(self, base: AffineMap | None, kept_m: NDArray[np.bool_], backward: bool) -> KernelMap:
        s = self.settings
        x_md, y_md = self.parents_md[kept_m], self.children_md[kept_m]
        if backward:
            x_md, y_md = y_md, x_md
        residuals_md = y_md - (base.apply(x_md) if base else x_md)
        return KernelMap(x_md, residuals_md, base, s.kernel, s.kernel_width, s.kernel_floor)
