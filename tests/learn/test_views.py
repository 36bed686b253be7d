"""Wide views: what they are made of, and that neither rank nor batch changes them."""

from __future__ import annotations

import numpy as np
import torch

from stream_odml.learn.views import MOST, WideViews, wide_views

SIDE = 8
IMAGES = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
INDEX = np.array([3, 9, 10, 11, 40, 41])


def test_every_pixel_comes_from_a_turned_or_mirrored_copy_of_the_image() -> None:
    for view in range(4):
        for image, seen in zip(IMAGES, wide_views(IMAGES, INDEX, view), strict=True):
            copies = [c.rot90(k, (1, 2)) for c in (image, image.flip(2)) for k in range(4)]
            matches = torch.stack([(copy == seen).all(0) for copy in copies])
            assert bool(matches.any(0).all())


def test_a_view_depends_on_its_image_and_index_alone() -> None:
    whole = wide_views(IMAGES, INDEX, 1)
    parts = [wide_views(IMAGES[part], INDEX[part], 1) for part in (slice(0, 2), slice(2, 6))]
    assert torch.equal(whole, torch.cat(parts))
    assert not torch.equal(whole, wide_views(IMAGES, INDEX, 2))
    assert not torch.equal(whole, wide_views(IMAGES, INDEX + 1, 1))


def test_a_task_has_at_most_so_many_views() -> None:
    index = np.arange(6)
    few = list(WideViews(4, 6).of(IMAGES, index))
    assert [row.tolist() for _, row in few] == [list(range(6))] * 4
    assert len(list(WideViews(4, MOST // 2).of(IMAGES, index))) == 2
    rationed = list(WideViews(4, 3 * MOST).of(IMAGES, index))
    assert [row.tolist() for _, row in rationed] == [[0, 3]]
    assert list(WideViews(4, 3 * MOST).of(IMAGES[:2], np.array([1, 2]))) == []
    assert list(WideViews(0, 6).of(IMAGES, index)) == []
