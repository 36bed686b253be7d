"""Cut-mix composites: images of no class, made from a task's own, on which the student is held to the old model.

The images of a task cover a small part of what the gallery holds; a distillation and a drift map fitted to them alone
are loose elsewhere. Images rotated, mirrored and joined along one straight cut (Yun et al., CutMix, 2019, without its
labels) lie outside that part, and need no stored image.
"""

# n images   b rows of this rank   S side in pixels

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.augment import step_seed
from stream_odml.learn.settings import StageSettings

MAX_LAST_PASS_COMPOSITES = 16_384
"""Maximum composites of a task in its last pass: enough for a map of a few hundred dimensions at any task size."""


def cut_mix(images_n3SS: Tensor, partners_n3SS: Tensor, draw_n4: Tensor) -> Tensor:
    """Return composites [n,3,S,S]: each image on one side of a straight cut, its partner on the other.

    Both are rotated by quarter turns and perhaps mirrored. `draw_n4`: four numbers in 0..1 per composite, which
    choose orientation of image and partner, angle and offset of the cut.
    """
    draw_n4 = draw_n4.to(images_n3SS.device)
    way_n2 = (draw_n4[:, :2] * 8).long()
    angle, offset = draw_n4[:, 2:, None, None].float().unbind(1)
    side = images_n3SS.shape[-1]
    across = torch.arange(side, device=images_n3SS.device) - (side - 1) / 2
    distance_nSS = across * (2 * math.pi * angle).cos() + across[:, None] * (2 * math.pi * angle).sin()
    first = (distance_nSS > (offset - 0.5) * side / 2)[:, None]
    mixed = torch.where(first, _oriented(images_n3SS, way_n2[:, 0]), _oriented(partners_n3SS, way_n2[:, 1]))
    return mixed.contiguous(memory_format=torch.channels_last)


def composites_of_batch(
    images_b3SS: Tensor, settings: StageSettings, seed: int, step: int, *, start: int, total: int
) -> Tensor:
    """Return composites of every n-th row of the global batch, of which this rank holds rows start..start+b.

    Partners are of the neighbouring class, `images_per_class` rows further or back. Where a rank holds an even
    number of classes of the batch, N ranks make the composites that one rank would; else the odd class's images
    are joined to themselves.
    """
    row_b, per_class = start + torch.arange(len(images_b3SS)), settings.images_per_class
    row_b = row_b[row_b % settings.composite_every == 0]
    other_b = torch.where(row_b // per_class % 2 == 0, row_b + per_class, row_b - per_class)
    held = (other_b >= start) & (other_b < start + len(images_b3SS))
    other_b = torch.where(held, other_b, row_b)
    # Drawn for the whole batch on the CPU, whose generator gives the same numbers on every machine.
    draws = torch.rand(total, 4, generator=torch.Generator().manual_seed(step_seed(seed, 5, step)))
    at, partner = ((row - start).to(images_b3SS.device) for row in (row_b, other_b))
    return cut_mix(images_b3SS[at], images_b3SS[partner], draws[row_b])


def counts_of_composites(counts: list[int], every: int) -> list[int]:
    """Return how many composites each rank makes, from the rows that each holds, without an exchange."""
    before = [-(-rows // every) for rows in accumulate(counts, initial=0)]
    return [after - start for start, after in pairwise(before)]


def last_pass_composites(
    images_n3SS: Tensor, index_n: NDArray[np.int64], each: int, n_images: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield composites of a batch, and the rows of the batch that they show: `each` of each of the task's `n_images`,
    fewer above MAX_LAST_PASS_COMPOSITES. `index_n`: indices of the images in the task. Partners are half a batch away,
    which in a task sorted by class is another class."""
    limit = MAX_LAST_PASS_COMPOSITES
    row_n = torch.from_numpy(np.flatnonzero(index_n % max(1, -(-n_images // limit)) == 0))
    if not len(row_n):
        return
    rows = row_n.to(images_n3SS.device)
    partner = (rows + len(images_n3SS) // 2) % len(images_n3SS)
    for number in range(min(each, max(1, limit // max(n_images, 1)))):
        draws = np.stack([np.random.default_rng((number, int(i))).random(4) for i in index_n[row_n.numpy()]])
        yield cut_mix(images_n3SS[rows], images_n3SS[partner], torch.from_numpy(draws)), row_n


def _oriented(images_n3SS: Tensor, way_n: Tensor) -> Tensor:
    """Mirror images whose `way` in 0..7 is odd, then rotate by way // 2 quarter turns."""
    oriented = images_n3SS.clone()
    for way in range(1, 8):
        rows = way_n == way
        chosen = images_n3SS[rows].flip(3) if way % 2 else images_n3SS[rows]
        oriented[rows] = chosen.rot90(way // 2, (2, 3))
    return oriented
