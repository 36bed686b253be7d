"""Whitening within classes: the formula, what it does to recall, and that everything of a first stage follows it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import build_embedder, embed
from stream_odml.learn.evaluation import Retrieval, nearest_is_relevant
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.learn.whitening import within_class_whitening
from tests.learn.tiny import CLASSES, SETTINGS, SPEC, learn, task


def whitening(
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
    W = whitening(g, labels, 8, 0.4)  # an eighth class without an image
    assert W is not None
    own = np.concatenate([g[labels == c] - g[labels == c].mean(0) for c in range(7)])
    S, share = own.T @ own, 0.4 * 56 / (56 + 5)
    mixed = (1 - share) * np.eye(5) + share * S / np.trace(S) * 5
    whitened = W.numpy() @ mixed @ W.numpy()
    assert np.allclose(whitened, np.eye(5) * whitened[0, 0])
    assert np.isclose(np.square(g @ W.numpy()).sum(), np.square(g).sum())


def test_classes_it_has_not_seen_are_told_apart_better() -> None:
    W = whitening(*noisy(30, 10, 16, 1), 30, 0.25)
    assert W is not None
    g, labels = noisy(30, 10, 16, 2)
    plain, whitened = (
        np.nanmean(nearest_is_relevant(Retrieval.leave_one_out(x.astype(np.float32), labels)))
        for x in (g, g @ W.numpy())
    )
    assert whitened > plain + 0.2


def test_where_nothing_differs_within_classes_nothing_is_whitened() -> None:
    g, labels = noisy(6, 2, 4, 3)
    assert whitening(g, labels, 6, 0.0) is None
    assert whitening(g, np.arange(12), 12, 0.25) is None  # an image each
    assert whitening(g[labels * 2], labels, 6, 0.25) is None  # all alike
    assert whitening(g * 0, labels, 6, 0.25) is None  # all zero


def test_bank_vectors_and_maps_of_a_first_stage_are_of_the_whitened_model() -> None:
    old = build_embedder(SPEC, 0)
    plain, whitened = (
        learn(0, old, ClassBank.empty(SPEC.dim), replace(SETTINGS, whitening=share)) for share in (0.0, 0.5)
    )
    pixels, labels, names = task(0)
    g = embed(whitened.student, pixels)
    assert not np.allclose(g, embed(plain.student, pixels), atol=0.01)
    assert np.allclose(whitened.embeddings, g, atol=1e-5)
    means = np.stack([g[labels == c].mean(0) for c in range(CLASSES)])
    assert list(whitened.bank.names) == names
    assert whitened.bank.counts.tolist() == [8] * CLASSES
    assert np.allclose(whitened.bank.means, means, atol=1e-5)
    directions = np.stack(
        [(g / np.linalg.norm(g, axis=1)[:, None])[labels == c].mean(0) for c in range(CLASSES)]
    )
    directions /= np.linalg.norm(directions, axis=1)[:, None]
    assert np.allclose(whitened.bank.directions, directions, atol=1e-5)
    parent = embed(old, pixels)
    assert np.square(whitened.forward.apply(parent) - g).sum() < np.square(g - g.mean(0)).sum()


def test_later_stages_and_models_without_a_head_are_left_alone() -> None:
    settings = replace(SETTINGS, whitening=0.5, stage_steps=0)
    first = learn(0, build_embedder(SPEC, 0), ClassBank.empty(SPEC.dim), settings)
    second = learn(1, first.student, first.bank, settings)
    assert torch.equal(first.student.head.weight, second.student.head.weight)  # type: ignore[arg-type]
    bare = build_embedder(EmbedderSpec(dim=64, image_size=16, head="none"), 0)
    plain, asked = (
        learn(0, bare, ClassBank.empty(64), replace(SETTINGS, whitening=share)) for share in (0.0, 0.5)
    )
    assert np.array_equal(plain.embeddings, asked.embeddings)
