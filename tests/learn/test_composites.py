"""Cut-mix composites: what they are made of, and that ranks, batches and restarts do not change them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stream_odml.learn.composites import (
    MAX_LAST_PASS_COMPOSITES,
    composites_of_batch,
    counts_of_composites,
    cut_mix,
    last_pass_composites,
)
from stream_odml.learn.settings import StageSettings

SIDE, K = 8, 3
IMAGES = torch.rand(4 * K, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))


def settings(every: int) -> StageSettings:
    return StageSettings(composite_every=every, images_per_class=K)


def turns(image: Tensor) -> Tensor:
    """The eight turned or mirrored copies of an image."""
    return torch.stack([c.rot90(k, (1, 2)) for c in (image, image.flip(2)) for k in range(4)])


def explained(view: Tensor, *sources: Tensor) -> bool:
    """Whether every pixel of `view` is that of some turned copy of a source."""
    copies = torch.cat([turns(source) for source in sources])
    return bool((copies == view).all(1).any(0).all())


def test_a_view_joins_an_image_and_its_partner_along_a_cut() -> None:
    partners, draws = IMAGES.flip(0), torch.rand(len(IMAGES), 4)
    views = cut_mix(IMAGES, partners, draws)
    for view, image, partner in zip(views, IMAGES, partners, strict=True):
        assert explained(view, image, partner)
    assert sum(not explained(v, i) for v, i in zip(views, IMAGES, strict=True)) > len(IMAGES) / 2


def test_the_cut_lies_where_the_draw_says() -> None:
    ones, zeros = torch.ones(1, 3, SIDE, SIDE), torch.zeros(1, 3, SIDE, SIDE)
    right = cut_mix(ones, zeros, torch.tensor([[0.0, 0.0, 0.0, 0.5]]))  # angle 0, through the middle
    assert torch.equal(right[0, 0], (torch.arange(SIDE) >= SIDE / 2).float().expand(SIDE, SIDE))
    half_turned = cut_mix(ones, zeros, torch.tensor([[0.0, 0.0, 0.5, 0.5]]))
    assert torch.equal(half_turned, 1 - right)


@pytest.mark.parametrize("every", [1, 2, 5])
def test_two_ranks_see_the_views_of_one(every: int) -> None:
    def views(start: int, stop: int) -> Tensor:
        return composites_of_batch(IMAGES[start:stop], settings(every), 7, 2, start=start, total=len(IMAGES))

    whole = views(0, 4 * K)
    assert len(whole) == -(-len(IMAGES) // every)
    assert torch.equal(whole, torch.cat([views(0, 2 * K), views(2 * K, 4 * K)]))
    uneven = [views(0, K), views(K, K), views(K, 4 * K)]
    assert counts_of_composites([K, 0, 3 * K], every) == [len(part) for part in uneven]
    assert all(explained(v, IMAGES[i * every], IMAGES[partner(i * every)]) for i, v in enumerate(whole))


def partner(row: int) -> int:
    return row + K if row // K % 2 == 0 else row - K


def test_a_rank_with_an_odd_class_joins_it_to_itself() -> None:
    views = composites_of_batch(IMAGES[:K], settings(1), 7, 2, start=0, total=len(IMAGES))
    assert all(explained(view, image) for view, image in zip(views, IMAGES, strict=False))


def test_the_last_pass_is_rationed_and_the_same_again() -> None:
    index = np.arange(6)
    few = list(last_pass_composites(IMAGES[:6], index, 4, 6))
    assert [row.tolist() for _, row in few] == [list(range(6))] * 4
    again = list(last_pass_composites(IMAGES[:6], index, 4, 6))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(few, again, strict=True))
    assert not torch.equal(few[0][0], few[1][0])
    assert len(list(last_pass_composites(IMAGES[:6], index, 4, MAX_LAST_PASS_COMPOSITES // 2))) == 2
    rationed = list(last_pass_composites(IMAGES[:6], index, 4, 3 * MAX_LAST_PASS_COMPOSITES))
    assert [row.tolist() for _, row in rationed] == [[0, 3]]
    assert list(last_pass_composites(IMAGES[:2], np.array([1, 2]), 4, 3 * MAX_LAST_PASS_COMPOSITES)) == []
    assert list(last_pass_composites(IMAGES[:6], index, 0, 6)) == []
