"""Wide views: from the images of a task, images of no class, on which the drift is measured as well.

A task of few classes shows the two models a small corner of what the gallery holds, and a map fitted there is wrong
elsewhere. An image turned, mirrored, and joined to itself along a cut lies outside that corner and needs no stored
image. A view is a function of its image and of the image's index alone, so that N ranks see what one rank would.
"""

# n images   S side in pixels

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MOST = 16_384
"""Views of a task: enough for a map of a few hundred dimensions, whatever the task's size."""


@dataclass(frozen=True)
class WideViews:
    """`each` views of each of the task's `n_images`, fewer where that were more than MOST in all."""

    each: int
    n_images: int

    def of(self, images_n3SS: Tensor, index_n: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of a batch, and the rows of the batch that they show."""
        row_n = torch.from_numpy(np.flatnonzero(index_n % max(1, -(-self.n_images // MOST)) == 0))
        for view in range(min(self.each, max(1, MOST // max(self.n_images, 1))) if len(row_n) else 0):
            shown = images_n3SS[row_n.to(images_n3SS.device)]
            yield wide_views(shown, index_n[row_n.numpy()], view), row_n


def wide_views(images_n3SS: Tensor, index_n: NDArray[np.int64], view: int) -> Tensor:
    """The view of this number of each image, [n,3,S,S]: two turned or mirrored copies of it, one on either side of
    a random straight cut."""
    draw_n4 = torch.from_numpy(np.stack([np.random.default_rng((view, int(i))).random(4) for i in index_n]))
    way_n2 = (draw_n4[:, :2] * 8).long().to(images_n3SS.device)
    angle, offset = draw_n4.float().to(images_n3SS.device)[:, 2:, None, None].unbind(1)
    side = images_n3SS.shape[-1]
    across = torch.arange(side, device=images_n3SS.device) - (side - 1) / 2
    distance_nSS = across * (2 * math.pi * angle).cos() + across[:, None] * (2 * math.pi * angle).sin()
    first = distance_nSS > (offset - 0.5) * side / 2
    views = torch.where(
        first[:, None], _turned(images_n3SS, way_n2[:, 0]), _turned(images_n3SS, way_n2[:, 1])
    )
    return views.contiguous(memory_format=torch.channels_last)


def _turned(images_n3SS: Tensor, way_n: Tensor) -> Tensor:
    """`way` 0..7: mirrored if odd, and way // 2 quarter turns."""
    turned = images_n3SS.clone()
    for way in range(1, 8):
        rows = way_n == way
        chosen = images_n3SS[rows].flip(3) if way % 2 else images_n3SS[rows]
        turned[rows] = chosen.rot90(way // 2, (2, 3))
    return turned
