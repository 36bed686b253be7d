"""Figures of one search against loops, and those of whole streams by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.quality.scores import (
    average_incremental_recall,
    backward_transfer,
    compatibility_matrix,
    forgetting,
    score_queries,
)
from stream_odml.learn import evaluation
from stream_odml.learn.evaluation import Retrieval, nearest_is_relevant, recall_at_k

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(60, 6)).astype(np.float32)
LABELS = RNG.integers(0, 12, 60)
LABELS[0] = 99  # a class of one image


def naive_map_at_r(vectors_nD: np.ndarray, labels_n: np.ndarray) -> float:
    """The mean, over images with others of their class, of the precision at each of the R nearest that is of it."""
    unit_nD = vectors_nD / np.linalg.norm(vectors_nD, axis=1, keepdims=True)
    found = []
    for i in range(len(labels_n)):
        others = np.delete(np.arange(len(labels_n)), i)
        hits = (labels_n[others] == labels_n[i])[np.argsort(-(unit_nD[others] @ unit_nD[i]))]
        if r := int(hits.sum()):
            found.append(sum(hits[: n + 1].mean() for n in range(r) if hits[n]) / r)
    return float(np.mean(found))


@pytest.mark.parametrize("block", [7, 1000])
def test_one_search_gives_recall_of_any_queries_and_their_precision(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "_QUERIES", block)
    monkeypatch.setattr(evaluation, "_GALLERY", block)
    retrieval = Retrieval.leave_one_out(VECTORS, LABELS)
    scores = score_queries(retrieval, 8)
    assert scores.recall_at_k((1, 4)) == recall_at_k(retrieval, (1, 4))
    some = np.array([0, 3, 11])
    assert scores.recall_at_k((1,), some)[1] == pytest.approx(
        np.nanmean(nearest_is_relevant(retrieval)[some])
    )
    assert scores.map_at_r() == pytest.approx(naive_map_at_r(VECTORS, LABELS))


def test_a_collapsed_space_scores_nothing() -> None:
    collapsed = Retrieval.leave_one_out(np.ones((40, 3), np.float32), np.repeat(np.arange(10), 4))
    assert score_queries(collapsed).map_at_r() == 0.0


def test_stage_summaries() -> None:
    recall = np.array([[0.9, 0, 0], [0.8, 0.7, 0], [0.85, 0.75, 0.6]])
    assert average_incremental_recall([0.9, 0.7, 0.5]) == pytest.approx(0.7)
    assert forgetting(recall) == pytest.approx(((0.9 - 0.85) + (0.7 - 0.75)) / 2)
    assert backward_transfer(recall) == pytest.approx(((0.85 - 0.9) + (0.75 - 0.7)) / 2)
    assert forgetting(recall[:1, :1]) == backward_transfer(recall[:1, :1]) == 0.0


def test_compatibility_matrix_sees_a_turned_space() -> None:
    angles = np.repeat(np.arange(4) * 90.0, 2) + np.tile([0.0, 1.0], 4)
    space = np.stack([np.cos(np.radians(angles)), np.sin(np.radians(angles))], 1)
    labels = np.repeat(np.arange(4), 2)
    turned = np.roll(space, 2, axis=0)
    matrix = compatibility_matrix({"new": turned}, {("old", "new"): space, ("new", "new"): turned}, labels)
    assert matrix == {("old", "new"): 0.0, ("new", "new"): 1.0}
    assert compatibility_matrix({"new": turned}, {("new", "new"): turned}, labels, np.array([0, 5])) == {
        ("new", "new"): 1.0
    }
