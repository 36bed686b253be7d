"""What the training benchmark compares is the same thing: naive and ours begin with one loss and learn alike."""

from __future__ import annotations

import pytest
import torch

from benchmarks.training.made import Shape, made_batch, made_learner
from benchmarks.training.naive import NaiveStep, naive_settings
from benchmarks.training.ranks import _InHalves
from stream_odml.learn.settings import EmbedderSpec, StageSettings

SHAPE = Shape("tiny", EmbedderSpec("conv4", 16, 16), 4, 3)


def test_the_naive_step_has_the_loss_of_ours() -> None:
    pixels, labels = made_batch(SHAPE, 0)
    naive = NaiveStep(SHAPE, 0)
    ours = made_learner(SHAPE, "ours", 0, weight_composites=0.0, peer_every=1)
    assert naive.step(pixels, labels) == pytest.approx(ours.step(pixels, labels).losses["total"], rel=1e-5)


def test_the_naive_settings_ask_the_peer_on_every_batch() -> None:
    assert StageSettings().peer_every > 1
    assert naive_settings(StageSettings()).peer_every == 1


def test_a_batch_in_halves_is_the_same_batch() -> None:
    """What `ranks` compares the losses of two ranks with: the same sums in another order, with peer and without."""
    pixels, labels = made_batch(SHAPE, 0)
    whole, halves = (made_learner(SHAPE, "ours", 0, peer_every=2) for _ in range(2))
    halves._parallel = _InHalves(halves._parallel)
    for step in range(3):
        a, b = (learner.step(pixels, labels).losses for learner in (whole, halves))
        assert b == pytest.approx(a, rel=1e-4), step
    ours, theirs = (list(learner.networks.parameters()) for learner in (whole, halves))
    assert not all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True)), "no other order was tried"
