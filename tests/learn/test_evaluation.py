"""Retrieval metrics against loops, blocks and ties included."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from stream_odml.learn import evaluation
from stream_odml.learn.evaluation import (
    Retrieval,
    average_incremental_recall,
    backward_transfer,
    compatibility_matrix,
    forgetting,
    nearest_is_relevant,
    recall_at_k,
    score_queries,
)
from stream_odml.learn.geometry import unit

RNG = np.random.default_rng(0)
VECTORS = RNG.normal(size=(60, 6)).astype(np.float32)
LABELS = RNG.integers(0, 12, 60)
LABELS[0] = 99  # a class of one image


def naive_hits(retrieval: Retrieval, i: int) -> tuple[list[bool], int]:
    """Relevance of the gallery from most to least similar, without the query itself; and how many are relevant."""
    q = retrieval.queries[i] / np.linalg.norm(retrieval.queries[i])
    scored = []
    for j, g in enumerate(retrieval.gallery):
        if retrieval.self_index is None or retrieval.self_index[i] != j:
            same = bool(retrieval.gallery_labels[j] == retrieval.query_labels[i])
            scored.append((-float(q @ g / np.linalg.norm(g)), same))
    hits = [same for _, same in sorted(scored)]
    return hits, sum(hits)


def naive(retrieval: Retrieval) -> tuple[dict[int, float], float]:
    recalls: dict[int, list[bool]] = {k: [] for k in (1, 4, 32)}
    precisions = []
    for i in range(len(retrieval.queries)):
        hits, r = naive_hits(retrieval, i)
        if r:
            for k, found in recalls.items():
                found.append(any(hits[:k]))
            precisions.append(sum(sum(hits[: n + 1]) / (n + 1) for n in range(r) if hits[n]) / r)
    return {k: float(np.mean(v)) for k, v in recalls.items()}, float(np.mean(precisions))


CASES = {
    "leave one out": Retrieval.leave_one_out(VECTORS, LABELS),
    "apart": Retrieval(VECTORS[:20], LABELS[:20], VECTORS[20:], LABELS[20:]),
    # -1: the first ten queries are not in the gallery.
    "partly": Retrieval(
        VECTORS[:20], LABELS[:20], VECTORS[10:], LABELS[10:], np.maximum(np.arange(20) - 10, -1)
    ),
}


@pytest.mark.parametrize("part", ["queries", "gallery"])
def test_a_value_that_is_not_finite_is_no_match_for_anything(part: str) -> None:
    vectors = {"queries": np.eye(3, dtype=np.float32), "gallery": np.eye(3, dtype=np.float32)}
    vectors[part][1, 0] = np.nan
    with pytest.raises(ValueError, match=f"{part} with a value that is not finite"):
        Retrieval(vectors["queries"], np.arange(3), vectors["gallery"], np.arange(3))


@pytest.mark.parametrize("name", CASES)
def test_the_nearest_of_each_query_equals_the_loops(name: str) -> None:
    retrieval = CASES[name]
    found = nearest_is_relevant(retrieval)
    for i, value in enumerate(found):
        hits, others = naive_hits(retrieval, i)
        assert np.isnan(value) if not others else value == hits[0]
    assert np.nanmean(found) == pytest.approx(recall_at_k(retrieval, (1,))[1])


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("block", [7, 1000])
def test_recall_and_map_equal_the_loops(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_QUERIES", block)
    monkeypatch.setattr(evaluation, "_GALLERY", block)
    retrieval = CASES[name]
    recalls, mean_precision = naive(retrieval)
    assert recall_at_k(retrieval, (1, 4, 32)) == pytest.approx(recalls)
    scores = score_queries(retrieval, 8)
    assert scores.recall_at_k((1, 4)) == pytest.approx({k: recalls[k] for k in (1, 4)})
    assert scores.map_at_r() == pytest.approx(mean_precision)
    some = np.array([0, 3, 11])
    assert scores.recall_at_k((1,), some)[1] == pytest.approx(
        np.nanmean(nearest_is_relevant(retrieval)[some])
    )


def test_ties_count_against_the_query() -> None:
    collapsed = np.ones((40, 3), np.float32)
    labels = np.repeat(np.arange(10), 4)
    retrieval = Retrieval.leave_one_out(collapsed, labels)
    assert recall_at_k(retrieval, (1, 32)) == {1: 0.0, 32: 0.0}
    assert score_queries(retrieval).map_at_r() == 0.0


@pytest.mark.parametrize("depth", [1, 2, 32, 60])
def test_the_last_bit_of_a_similarity_is_seen_and_at_every_depth_alike(depth: int) -> None:
    """Near-copies, whose similarities are equal or a last bit apart, against sorting them one by one."""
    rng = np.random.default_rng(0)
    copies = (rng.normal(size=8) + 3e-8 * rng.normal(size=(240, 8))).astype(np.float32)
    labels = rng.integers(0, 12, 240)
    similar = (unit(torch.from_numpy(copies)) @ unit(torch.from_numpy(copies)).T).numpy()
    assert len(np.unique(similar)) > 3, "all alike: nothing is tested"
    first = []
    for i, row in enumerate(similar):
        others = [j for j in range(240) if j != i]
        order = sorted(others, key=lambda j: (-row[j], labels[j] == labels[i]))
        first.append(next(n for n, j in enumerate(order) if labels[j] == labels[i]))
    retrieval = Retrieval.leave_one_out(copies, labels)
    expected = {k: float(np.mean(np.array(first) < k)) for k in (1, depth)}
    assert recall_at_k(retrieval, (1, depth)) == pytest.approx(expected)
    assert score_queries(retrieval, depth).recall_at_k((1, depth)) == pytest.approx(expected)
    assert nearest_is_relevant(retrieval).mean() == pytest.approx(expected[1])


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        recall_at_k(Retrieval.leave_one_out(VECTORS, np.arange(60)))
    with pytest.raises(ValueError, match="not one space"):
        Retrieval(VECTORS, LABELS, VECTORS[:, :3], LABELS)


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
