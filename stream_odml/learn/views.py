"""Wide views: from the images of a task, images of no class, on which the student is anchored and the drift measured.

A task of few classes shows the two models a small corner of what the gallery holds; what is pinned and fitted there
alone is loose elsewhere. Images turned, mirrored and joined to others lie outside it, and need no stored image.
"""

# n images   b rows of this rank   S side in pixels

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.augment import step_seed

MOST = 16_384
"""Views of a task in its last pass: enough for a map of a few hundred dimensions, whatever the task's size."""


def wide_views(images_n3SS: Tensor, partners_n3SS: Tensor, draw_n4: Tensor) -> Tensor:
    """[n,3,S,S]: each image on one side of a straight cut, its partner on the other, both turned by quarters and
    perhaps mirrored. `draw`: four numbers of 0..1 for each, which say how."""
    draw_n4 = draw_n4.to(images_n3SS.device)
    way_n2 = (draw_n4[:, :2] * 8).long()
    angle, offset = draw_n4[:, 2:, None, None].float().unbind(1)
    side = images_n3SS.shape[-1]
    across = torch.arange(side, device=images_n3SS.device) - (side - 1) / 2
    distance_nSS = across * (2 * math.pi * angle).cos() + across[:, None] * (2 * math.pi * angle).sin()
    first = (distance_nSS > (offset - 0.5) * side / 2)[:, None]
    views = torch.where(first, _turned(images_n3SS, way_n2[:, 0]), _turned(partners_n3SS, way_n2[:, 1]))
    return views.contiguous(memory_format=torch.channels_last)


def views_of_batch(
    images_b3SS: Tensor, every: int, per_class: int, seed: int, step: int, *, start: int, total: int
) -> Tensor:
    """Wide views of every n-th row of the global batch, of which this rank holds rows start..start+b.

    Partners are of the neighbouring class, `per_class` rows on or back. Where a rank holds an even number of classes
    of the batch, N ranks see what one rank would; else the odd class's images are joined to themselves.
    """
    row_b = start + torch.arange(len(images_b3SS))
    row_b = row_b[row_b % every == 0]
    other_b = torch.where(row_b // per_class % 2 == 0, row_b + per_class, row_b - per_class)
    held = (other_b >= start) & (other_b < start + len(images_b3SS))
    other_b = torch.where(held, other_b, row_b)
    # Drawn for the whole batch on the CPU, whose generator gives the same numbers on every machine.
    draws = torch.rand(total, 4, generator=torch.Generator().manual_seed(step_seed(seed, 5, step)))
    at, partner = ((row - start).to(images_b3SS.device) for row in (row_b, other_b))
    return wide_views(images_b3SS[at], images_b3SS[partner], draws[row_b])


def counts_of_views(counts: list[int], every: int) -> list[int]:
    """How many views `views_of_batch` gives each rank, of which they hold so many rows: known without asking."""
    before = [-(-rows // every) for rows in accumulate(counts, initial=0)]
    return [after - start for start, after in pairwise(before)]


@dataclass(frozen=True)
class LastPassViews:
    """`each` views of each of the task's `n_images`, fewer where that were more than MOST in all."""

    each: int
    n_images: int

    def of(self, images_n3SS: Tensor, index_n: NDArray[np.int64]) -> Iterator[tuple[Tensor, Tensor]]:
        """Views of a batch whose images have these indices in the task, and the rows of the batch that they show.
        Partners are half a batch away, which in a task sorted by class is another class."""
        row_n = torch.from_numpy(np.flatnonzero(index_n % max(1, -(-self.n_images // MOST)) == 0))
        if not len(row_n):
            return
        rows = row_n.to(images_n3SS.device)
        partner = (rows + len(images_n3SS) // 2) % len(images_n3SS)
        for view in range(min(self.each, max(1, MOST // max(self.n_images, 1)))):
            draws = np.stack(
                [np.random.default_rng((view, int(i))).random(4) for i in index_n[row_n.numpy()]]
            )
            yield wide_views(images_n3SS[rows], images_n3SS[partner], torch.from_numpy(draws)), row_n


def _turned(images_n3SS: Tensor, way_n: Tensor) -> Tensor:
    """`way` 0..7: mirrored if odd, and way // 2 quarter turns."""
    turned = images_n3SS.clone()
    for way in range(1, 8):
        rows = way_n == way
        chosen = images_n3SS[rows].flip(3) if way % 2 else images_n3SS[rows]
        turned[rows] = chosen.rot90(way // 2, (2, 3))
    return turned
