"""Whitening within classes: the formula, what it does to recall, and that everything of a first stage follows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import build_embedder, embed
from stream_odml.learn.evaluation import Retrieval, nearest_is_relevant
from stream_odml.learn.finish import StageOutcome
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.learn.whitening import error_whitening, within_class_whitening
from tests.learn.tiny import CLASSES, IMAGES, SETTINGS, SPEC, after, learn, task


def within(
    g_nd: NDArray[np.float64], labels_n: NDArray[np.int64], classes: int, share: float
) -> torch.Tensor | None:
    """`within_class_whitening` of rows and their labels."""
    g, labels = torch.from_numpy(g_nd), torch.from_numpy(labels_n)
    sum_cd = torch.zeros(classes, g.shape[1], dtype=torch.float64).index_add_(0, labels, g)
    return within_class_whitening(g.T @ g, sum_cd, torch.bincount(labels, minlength=classes).double(), share)


def noisy(classes: int, each: int, dim: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Classes that differ in every direction alike, and images that differ most in the first few."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), each)
    noise = rng.normal(size=(len(labels), dim)) * np.where(np.arange(dim) < 4, 3.0, 0.5)
    return rng.normal(size=(classes, dim))[labels] + noise, labels


def test_it_is_the_root_of_the_shrunk_covariance_within_classes() -> None:
    g, labels = noisy(7, 9, 5, 0)
    W = within(g, labels, 8, 0.4)  # an eighth class without an image
    assert W is not None
    own = np.concatenate([g[labels == c] - g[labels == c].mean(0) for c in range(7)])
    S, share = own.T @ own, 0.4 * 56 / (56 + 5)
    mixed = (1 - share) * np.eye(5) + share * S / np.trace(S) * 5
    whitened = W.numpy() @ mixed @ W.numpy()
    assert np.allclose(whitened, np.eye(5) * whitened[0, 0])
    assert np.isclose(np.square(g @ W.numpy()).sum(), np.square(g).sum())


def test_classes_it_has_not_seen_are_separated_better() -> None:
    W = within(*noisy(30, 10, 16, 1), 30, 0.25)
    assert W is not None
    g, labels = noisy(30, 10, 16, 2)
    plain, whitened = (
        np.nanmean(nearest_is_relevant(Retrieval.leave_one_out(x.astype(np.float32), labels)))
        for x in (g, g @ W.numpy())
    )
    assert whitened > plain + 0.2


def test_where_nothing_differs_within_classes_nothing_is_whitened() -> None:
    g, labels = noisy(6, 2, 4, 3)
    assert within(g, labels, 6, 0.0) is None
    assert within(g, np.arange(12), 12, 0.25) is None  # an image each
    assert within(g[labels * 2], labels, 6, 0.25) is None  # all alike
    assert within(g * 0, labels, 6, 0.25) is None  # all zero


def test_where_a_map_goes_wrong_is_shrunk_by_the_error_over_the_variance() -> None:
    rng = np.random.default_rng(4)
    g = rng.normal(size=(90, 5)) + 2.0
    errors = rng.normal(size=(90, 5)) * np.array([0.4, 0.1, 0.1, 0.0, 0.0])
    E, sums = errors.T @ errors / 90, torch.from_numpy(g)
    W = error_whitening(torch.from_numpy(E), 90, sums.sum(0), sums.T @ sums, 2.0)
    assert W is not None
    ratio = 2.0 * np.trace(E) / np.square(g - g.mean(0)).sum(1).mean()
    share = ratio / (1 + ratio) * 90 / (90 + 5)
    whitened = W.numpy() @ ((1 - share) * np.eye(5) + share * E / np.trace(E) * 5) @ W.numpy()
    assert np.allclose(whitened, np.eye(5) * whitened[0, 0])
    assert np.isclose(np.square(g @ W.numpy()).sum(), np.square(g).sum())
    most, more = (error_whitening(torch.from_numpy(E), 90, sums.sum(0), sums.T @ sums, k) for k in (1e3, 1e6))
    assert most is not None
    assert more is not None
    assert torch.equal(most, more)
    alike = torch.ones(90, 5, dtype=torch.float64)
    assert error_whitening(torch.from_numpy(E), 90, alike.sum(0), alike.T @ alike, 6.0) is None
    assert error_whitening(torch.from_numpy(E * 0), 90, sums.sum(0), sums.T @ sums, 6.0) is None
    assert error_whitening(torch.from_numpy(E), 90, sums.sum(0), sums.T @ sums, 0.0) is None


def consistent(outcome: StageOutcome, t: int, created: slice) -> None:
    """Vectors and the bank's newest entries are of the model that they come with."""
    pixels, labels, names = task(t)
    g = embed(outcome.student, pixels)
    z = g / np.linalg.norm(g, axis=1)[:, None]
    assert np.allclose(outcome.embeddings, g, atol=1e-5)
    assert list(outcome.bank.names[created]) == names
    assert outcome.bank.counts[created].tolist() == [IMAGES] * CLASSES
    means, directions = (np.stack([x[labels == c].mean(0) for c in range(CLASSES)]) for x in (g, z))
    assert np.allclose(outcome.bank.means[created], means, atol=1e-5)
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    assert np.allclose(outcome.bank.directions[created], directions, atol=1e-5)


def test_bank_vectors_and_maps_of_a_first_stage_are_of_the_whitened_model() -> None:
    old, pixels = build_embedder(SPEC, 0), task(0)[0]
    plain, whitened = (
        learn(0, old, ClassBank.empty(SPEC.dim), replace(SETTINGS, whitening=share)) for share in (0.0, 0.5)
    )
    g = embed(whitened.student, pixels)
    assert not np.allclose(g, embed(plain.student, pixels), atol=0.01)
    consistent(whitened, 0, slice(None))
    followed = whitened.forward.apply(embed(old, pixels))
    assert np.square(followed - g).sum() < np.square(g - g.mean(0)).sum()


@pytest.mark.parametrize("ridge", [None, 10.0])
@pytest.mark.parametrize("gallery_map", ["affine", "affine+kernel"])
def test_all_that_is_stored_follows_a_later_stage_that_is_whitened_exactly(
    ridge: float | None, gallery_map: str
) -> None:
    old, bank = after(1)
    settings = replace(SETTINGS, learning_rate=3e-3, stage_steps=20, ridge=ridge, gallery_map=gallery_map)  # type: ignore[arg-type]
    plain, whitened = (learn(1, old, bank, replace(settings, error_whitening=k)) for k in (0.0, 6.0))
    consistent(whitened, 1, slice(CLASSES, None))
    assert whitened.drift["forward_error"] < 0.95 * plain.drift["forward_error"]
    # W from what it did to the embeddings, which are more than their dimensions.
    W = np.linalg.lstsq(plain.embeddings.astype(np.float64), whitened.embeddings.astype(np.float64))[0]
    assert not np.allclose(W, np.eye(len(W)), atol=0.02)
    stored = embed(old, task(0)[0])
    assert np.allclose(whitened.bank.means[:CLASSES], plain.bank.means[:CLASSES] @ W, atol=1e-4)
    assert np.allclose(whitened.forward.apply(stored), plain.forward.apply(stored) @ W, atol=1e-4)
    if gallery_map == "affine":  # a kernel looks at the likeness of what it maps, which W changes
        there = plain.forward.apply(stored)
        back = whitened.backward.apply((there @ W).astype(np.float32))
        assert np.allclose(back, plain.backward.apply(there), atol=1e-4)


def test_stages_that_ask_for_none_and_models_without_a_head_are_left_alone() -> None:
    settings = replace(SETTINGS, whitening=0.5, stage_steps=0, error_whitening=0.0)
    first = learn(0, build_embedder(SPEC, 0), ClassBank.empty(SPEC.dim), settings)
    second = learn(1, first.student, first.bank, settings)
    assert torch.equal(first.student.head.weight, second.student.head.weight)  # type: ignore[arg-type]
    bare = build_embedder(EmbedderSpec(dim=64, image_size=16, head="none"), 0)
    plain, asked = (
        learn(0, bare, ClassBank.empty(64), replace(SETTINGS, whitening=share)) for share in (0.0, 0.5)
    )
    assert np.array_equal(plain.embeddings, asked.embeddings)
    plain, asked = (
        learn(1, plain.student, plain.bank, replace(SETTINGS, error_whitening=weight))
        for weight in (0.0, 6.0)
    )
    assert np.array_equal(plain.embeddings, asked.embeddings)
