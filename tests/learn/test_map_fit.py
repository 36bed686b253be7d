"""The map of a stage: what cross-validation over classes chooses, against a loop over held-out classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from stream_odml.learn.map_fit import DEFAULT_RIDGE, FOLDS, RIDGES, MapFit
from stream_odml.learn.moments import PairMoments
from stream_odml.learn.world import World

D = 4


def task(classes: int, each: int, seed: int, noise: float = 0.3) -> tuple[Tensor, Tensor, Tensor]:
    """Parents around class centres, children turned a little and with noise, labels."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, D))
    labels = np.repeat(np.arange(classes), each)
    x = centres[labels] + 0.1 * random.normal(size=(len(labels), D))
    turn = np.eye(D) + 0.2 * random.normal(size=(D, D))
    y = (
        x @ turn.T + 0.5 + noise * random.normal(size=(classes, D))[labels]
    )  # each class has a drift of its own
    return torch.from_numpy(x), torch.from_numpy(y), torch.from_numpy(labels)


def fitted(parts: list[tuple[Tensor, Tensor, Tensor]], views: tuple[Tensor, Tensor, Tensor]) -> MapFit:
    fit = MapFit(D)
    for part in parts:
        fit.add(*part)
    fit.add(*views, composites=True)
    return fit.summed(World())


@pytest.mark.parametrize("backward", [False, True])
def test_the_ridge_is_the_best_for_classes_that_are_held_out(backward: bool) -> None:
    images, views = task(12, 5, 0), task(12, 3, 1)
    errors = []
    for ridge in RIDGES:
        total = 0.0
        for fold in range(FOLDS):
            train = PairMoments.empty(D)
            for x, y, labels in (images, views):
                train.add(x[labels % FOLDS != fold], y[labels % FOLDS != fold])
            test = images[2] % FOLDS == fold
            source, target = (1, 0) if backward else (0, 1)
            found = train.fit(ridge, backward=backward).apply(images[source][test].numpy())
            total += ((found - images[target][test].numpy()) ** 2).sum()
        errors.append(total)
    fit = fitted([images], views)
    assert fit.best_ridge(backward=backward) == RIDGES[int(np.argmin(errors))]
    everything = PairMoments.empty(D)
    for x, y, _ in (images, views):
        everything.add(x, y)
    best = everything.fit(fit.best_ridge(backward=backward), backward=backward)
    chosen = fit.fitted(None)
    assert pytest.approx(best.A) == (chosen.backward if backward else chosen.forward).A
    if not backward:
        assert float(chosen.missed_dd.trace()) * len(images[0]) == pytest.approx(min(errors))


def test_noise_of_classes_asks_for_more_ridge_than_a_clean_turn() -> None:
    nothing = task(0, 0, 1)
    clean, noisy = (fitted([task(12, 5, 0, noise)], nothing).best_ridge() for noise in (0.0, 2.0))
    assert clean < noisy


def test_batches_do_not_matter_and_too_few_classes_take_the_default() -> None:
    x, y, labels = task(9, 4, 2)
    whole = fitted([(x, y, labels)], task(0, 0, 1))
    halves = fitted([(x[:20], y[:20], labels[:20]), (x[20:], y[20:], labels[20:])], task(0, 0, 1))
    assert pytest.approx(halves.fitted(None).forward.A) == whole.fitted(None).forward.A
    assert whole.of_images().n == 36
    one = labels == 4
    assert fitted([(x[one], y[one], labels[one])], task(0, 0, 1)).best_ridge() == DEFAULT_RIDGE


@pytest.mark.parametrize("backward", [False, True])
def test_errors_of_all_ridges_are_those_of_a_fit_for_each(backward: bool) -> None:
    train, held = PairMoments.empty(D), PairMoments.empty(D)
    for moments, seed in ((train, 0), (held, 3)):
        x, y, _ = task(7, 5, seed)
        moments.add(x, y)
    source, target = (y, x) if backward else (x, y)
    found = train.errors((0.0, *RIDGES), held, backward=backward)
    for ridge, error in zip((0.0, *RIDGES), found, strict=True):
        fit = train.fit(ridge, backward=backward)
        missed = fit.apply(np.asarray(source, np.float64)) - np.asarray(target, np.float64)
        assert error == pytest.approx(np.square(missed).sum(axis=1).mean(), rel=1e-9)
