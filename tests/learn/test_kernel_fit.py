"""The kernel map of a stage, and what it misses of classes that it has no anchor of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream_odml.learn.drift import AffineMap, KernelMap
from stream_odml.learn.map_fit import FOLDS, KernelFit
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.world import World

D = 5
SETTINGS = StageSettings(gallery_map="affine+kernel", kernel_pairs=60)
BASE = AffineMap(0.9 * np.eye(D), np.full(D, 0.1))


def gathered(classes: int, images: int) -> KernelFit:
    """`images` pairs of each class, whose drift is that of their class."""
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(classes), images)
    parent = random.normal(size=(classes, D))[labels] + 0.1 * random.normal(size=(len(labels), D))
    child = parent + 0.3 * random.normal(size=(classes, D))[labels]
    rows = (parent.astype(np.float32), child.astype(np.float32), torch.from_numpy(labels))
    return KernelFit.gathered(SETTINGS, *rows, len(labels), World())


@pytest.mark.parametrize("base", [None, BASE])
def test_the_error_is_that_of_maps_which_have_not_seen_the_class(base: AffineMap | None) -> None:
    kernel = gathered(8, 5)
    total = 0.0
    for fold in range(FOLDS):
        others, own = kernel.labels_m % FOLDS != fold, kernel.labels_m % FOLDS == fold
        x, y = kernel.parents_md[others], kernel.children_md[others]
        start = base.apply(x) if base else x
        fitted = KernelMap(x, y - start, base, SETTINGS.kernel, SETTINGS.kernel_width, SETTINGS.kernel_floor)
        total += np.square(fitted.apply(kernel.parents_md[own]) - kernel.children_md[own]).sum()
    error = kernel.held_out_error(base)
    assert error == pytest.approx(total / 40, rel=1e-4)
    seen = np.square(kernel.fit(base).apply(kernel.parents_md) - kernel.children_md).sum(1).mean()
    assert seen < 0.5 * error


def test_one_class_is_tried_on_itself() -> None:
    kernel = gathered(1, 6)
    seen = np.square(kernel.fit(None).apply(kernel.parents_md) - kernel.children_md).sum(1).mean()
    assert kernel.held_out_error(None) == pytest.approx(seen, rel=1e-4)


def test_anchors_are_no_more_than_asked_for_and_lead_back() -> None:
    kernel = gathered(8, 20)
    assert len(kernel.labels_m) <= SETTINGS.kernel_pairs
    back = kernel.fit(None, backward=True)
    assert np.array_equal(back.centres_md, kernel.children_md)
    there = kernel.fit(None)
    assert there.residuals_md == pytest.approx(-back.residuals_md)
