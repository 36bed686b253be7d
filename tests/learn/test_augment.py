"""Augmentation: a pure function of seed, step and row of the global batch."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stream_odml.learn.augment import augment
from stream_odml.learn.settings import StageSettings

SETTINGS = StageSettings(augment=1.0, augment_colour=1.0, augment_flip=True)
IMAGES = torch.rand(8, 3, 20, 20, generator=torch.Generator().manual_seed(0))


def test_the_same_seed_and_step_give_the_same_views() -> None:
    views = [
        augment(IMAGES, SETTINGS, seed, step, start=0, total=8)
        for seed, step in ((1, 2), (1, 2), (1, 3), (2, 2))
    ]
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
    assert not torch.equal(views[0], views[3])


def test_ranks_see_the_views_of_the_whole_batch() -> None:
    whole = augment(IMAGES, SETTINGS, 1, 2, start=0, total=8)
    halves = [augment(IMAGES[s : s + 4], SETTINGS, 1, 2, start=s, total=8) for s in (0, 4)]
    assert torch.allclose(torch.cat(halves), whole, atol=1e-6)


def test_images_of_a_batch_get_different_views_within_bounds() -> None:
    same = IMAGES[:1].expand(8, -1, -1, -1)
    views = augment(same, SETTINGS, 1, 2, start=0, total=8)
    assert views.shape == same.shape
    assert 0 <= float(views.min()) <= float(views.max()) <= 1
    assert min(float((views[0] - view).abs().mean()) for view in views[1:]) > 0.01


def test_strength_scales_and_zero_is_off() -> None:
    off = replace(SETTINGS, augment=0.0, augment_colour=0.0, augment_flip=False)
    assert augment(IMAGES, off, 1, 2, start=0, total=8) is IMAGES
    gentle, strong = (
        (augment(IMAGES, replace(off, augment=s), 1, 2, start=0, total=8) - IMAGES).abs().mean()
        for s in (0.01, 1.0)
    )
    assert gentle < 0.3 * strong


def test_a_flip_alone_mirrors_half_of_the_images() -> None:
    views = augment(IMAGES, StageSettings(augment=0.0, augment_flip=True), 1, 2, start=0, total=8)
    kinds = set()
    for image, view in zip(IMAGES, views, strict=True):
        mirrored = torch.allclose(view, image.flip(2), atol=1e-4)
        assert mirrored or torch.allclose(view, image, atol=1e-4)
        kinds.add(mirrored)
    assert kinds == {True, False}


def test_a_shift_moves_a_point_and_continues_the_border() -> None:
    blank = torch.full((4, 3, 20, 20), 0.7)
    views = augment(blank, StageSettings(augment=1.0), 1, 2, start=0, total=4)
    assert views.numpy() == pytest.approx(0.7, abs=1e-5)
