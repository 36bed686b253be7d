"""Rivals on stored features against their formulas, written out with inverses and loops."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.methods import parse_method
from benchmarks.quality.rivals import Fecam, Ranpac, StoredHead
from stream_odml.learn.evaluation import Retrieval, recall_at_k
from stream_odml.learn.settings import StageSettings

RANDOM = np.random.default_rng(3)
LABELS = np.repeat([4, 7, 9], 8)
FEATURES = np.maximum(
    RANDOM.normal(size=(3, 6))[np.repeat(np.arange(3), 8)] + RANDOM.normal(0, 0.7, (24, 6)), 0
).astype(np.float32)
QUERIES = np.abs(RANDOM.normal(size=(5, 6))).astype(np.float32)


def lifted(width: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ReLU(h R) of the stored features and of the queries, in float64."""
    R_DM = np.random.default_rng((seed, 15)).standard_normal((6, width), np.float32).astype(np.float64)
    return np.maximum(FEATURES @ R_DM, 0), np.maximum(QUERIES @ R_DM, 0)


@pytest.mark.parametrize("width", [10, 60])
def test_ranpac_scores_classes_by_ridge_regression_on_random_features(width: int) -> None:
    from sklearn.linear_model import Ridge  # seconds, of one process of a run

    F, f = lifted(width, 2)
    onehot = (LABELS[:, None] == np.array([4, 7, 9])).astype(float)
    expected = Ridge(alpha=3.0, fit_intercept=False).fit(F, onehot).predict(f)
    fitted = Ranpac("logits", width, 3.0).fit(FEATURES, LABELS, 2)
    assert np.allclose(fitted.queries(QUERIES), expected, atol=1e-4)
    by_class = Ranpac("classes", width, 3.0).fit(FEATURES, LABELS, 2)
    assert np.allclose(by_class.queries(QUERIES), expected, atol=1e-4)
    assert by_class.items(QUERIES, np.array([7, 4, 9, 9, 5])).tolist() == [
        [0, 1, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1], [0, 0, 0]
    ]  # fmt: skip


@pytest.mark.parametrize("width", [10, 60])
def test_ranpac_features_are_compared_in_the_metric_of_its_scores(width: int) -> None:
    F, f = lifted(width, 2)
    expected = 3.0 * f @ np.linalg.inv(F.T @ F + 3.0 * np.eye(width)) @ f.T
    z = Ranpac("features", width, 3.0).fit(FEATURES, LABELS, 2).queries(QUERIES).astype(np.float64)
    assert np.allclose(z @ z.T, expected, atol=1e-4)


@pytest.mark.parametrize("shrink", [0.5, 2.0])
def test_fecam_measures_to_each_class_by_its_own_shrunk_correlation(shrink: float) -> None:
    x, q = FEATURES.astype(float) ** 0.5, QUERIES.astype(float) ** 0.5
    expected = np.empty((5, 3))
    for c, label in enumerate((4, 7, 9)):
        own = x[label == LABELS]
        cov = np.cov(own, rowvar=False)
        off = ~np.eye(6, dtype=bool)
        cov = cov + shrink * cov.diagonal().mean() * np.eye(6) + shrink * cov[off].mean() * off
        deviation = np.sqrt(cov.diagonal())
        inverse = np.linalg.inv(cov / np.outer(deviation, deviation))
        mean = own.mean(0) / np.linalg.norm(own.mean(0))
        for i, row in enumerate(q / np.linalg.norm(q, axis=1, keepdims=True)):
            expected[i, c] = (row - mean) @ inverse @ (row - mean)
    fitted = Fecam(shrink).fit(FEATURES, LABELS, 0)
    assert np.allclose(fitted.queries(QUERIES), -expected, rtol=1e-5)


def test_fecam_knows_a_class_of_one_image_by_its_mean_alone() -> None:
    fitted = Fecam().fit(FEATURES[:9], LABELS[:9], 0)
    x, q = FEATURES[8] ** 0.5, QUERIES**0.5
    expected = ((q / np.linalg.norm(q, axis=1, keepdims=True) - x / np.linalg.norm(x)) ** 2).sum(1)
    assert np.allclose(-fitted.queries(QUERIES)[:, 1], expected, rtol=1e-4)


def test_a_trained_head_finds_the_directions_in_which_classes_differ() -> None:
    noise = RANDOM.normal(0, 3, (160, 16)).astype(np.float32)
    labels = np.repeat(np.arange(8), 20)
    noise[:, :4] = RANDOM.normal(0, 1, (8, 4))[labels] + RANDOM.normal(0, 0.1, (160, 4))
    learnt, others = np.arange(160) % 2 == 0, np.arange(160) % 2 == 1
    head = StoredHead(dim=4, steps=300, rate=1e-2, classes_per_batch=8)

    def recall(z: np.ndarray) -> float:
        return recall_at_k(Retrieval.leave_one_out(z, labels[others]), (1,))[1]

    fitted = head.fit(noise[learnt], labels[learnt], 0)
    again = head.fit(noise[learnt], labels[learnt], 0)
    assert np.array_equal(fitted.queries(noise), again.queries(noise)), "the same from the same seed"
    assert recall(noise[others]) < 0.5
    assert recall(fitted.queries(noise[others])) > 0.9


def test_options_of_a_rival_are_named_as_settings_are() -> None:
    method = parse_method("wide=ranpac_logits:width=20:ridge=1e3", StageSettings())
    assert method.rival == Ranpac("logits", 20, 1000.0)
    assert parse_method("ranpac_logits", StageSettings()).rival != method.rival
    with pytest.raises(ValueError, match="unknown setting 'weight_old'"):
        parse_method("wide=ranpac_logits:weight_old=20", StageSettings())
    with pytest.raises(ValueError, match="ridge"):
        parse_method("wide=fecam:shrink=1:power=2:ridge=3", StageSettings())
    with pytest.raises(ValueError, match="finite number above 0"):
        parse_method("wide=fecam:shrink=0", StageSettings())
