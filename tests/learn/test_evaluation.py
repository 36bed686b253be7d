"""Retrieval metrics against loops, blocks and ties included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from stream_odml.learn import evaluation
from stream_odml.learn.evaluation import (
    Retrieval,
    nearest_is_relevant,
    recall_at_k,
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


def naive(retrieval: Retrieval) -> dict[int, float]:
    recalls: dict[int, list[bool]] = {k: [] for k in (1, 4, 32)}
    for i in range(len(retrieval.queries)):
        hits, r = naive_hits(retrieval, i)
        if r:
            for k, found in recalls.items():
                found.append(any(hits[:k]))
    return {k: float(np.mean(v)) for k, v in recalls.items()}


CASES = {
    "leave one out": Retrieval.leave_one_out(VECTORS, LABELS),
    "apart": Retrieval(VECTORS[:20], LABELS[:20], VECTORS[20:], LABELS[20:]),
    # -1: the first ten queries are not in the gallery.
    "partly": Retrieval(
        VECTORS[:20], LABELS[:20], VECTORS[10:], LABELS[10:], np.maximum(np.arange(20) - 10, -1)
    ),
}


@pytest.mark.parametrize(
    ("own", "said"),
    [(np.arange(3), "self_index of shape"), (np.arange(60) + 1, "own row"), (np.arange(60) - 2, "or -1")],
)
def test_rows_of_queries_that_are_not_in_the_gallery_are_refused(own: np.ndarray, said: str) -> None:
    """They were taken for others, or a query for its own neighbour."""
    with pytest.raises(ValueError, match=said):
        Retrieval(VECTORS, LABELS, VECTORS, LABELS, own)


def test_what_is_no_array_is_named_with_what_makes_one() -> None:
    names: Any = np.array([f"class {label}" for label in LABELS])
    tensor: Any = torch.from_numpy(VECTORS)
    listed: Any = VECTORS.tolist()
    for vectors, labels, said in (
        (VECTORS, names, "np.unique"),
        (tensor, LABELS, "detach"),
        (listed, LABELS, "np.asarray"),
    ):
        with pytest.raises(ValueError, match=said):
            Retrieval.leave_one_out(vectors, labels)


@pytest.mark.parametrize("ks", [(), (0,), (1, -1)])
def test_a_depth_under_one_is_refused(ks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="depth of at least 1"):
        recall_at_k(Retrieval.leave_one_out(VECTORS, LABELS), ks)


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
def test_recall_equals_the_loops(name: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation, "_QUERIES", block)
    monkeypatch.setattr(evaluation, "_GALLERY", block)
    retrieval = CASES[name]
    assert recall_at_k(retrieval, (1, 4, 32)) == pytest.approx(naive(retrieval))


def test_ties_count_against_the_query() -> None:
    collapsed = np.ones((40, 3), np.float32)
    labels = np.repeat(np.arange(10), 4)
    retrieval = Retrieval.leave_one_out(collapsed, labels)
    assert recall_at_k(retrieval, (1, 32)) == {1: 0.0, 32: 0.0}


@pytest.mark.parametrize("depth", [1, 2, 32, 60, 239])
@pytest.mark.parametrize("block", [37, 8192])
def test_the_last_bit_of_a_similarity_is_seen_and_at_every_depth_alike(
    depth: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Near-copies, whose similarities are equal or a last bit apart, against sorting them one by one; in one block and
    merged from several."""
    monkeypatch.setattr(evaluation, "_GALLERY", block)
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
    assert nearest_is_relevant(retrieval).mean() == pytest.approx(expected[1])


def test_nothing_to_measure_is_an_error() -> None:
    with pytest.raises(ValueError, match="nothing to measure"):
        recall_at_k(Retrieval.leave_one_out(VECTORS, np.arange(60)))
    with pytest.raises(ValueError, match="not one space"):
        Retrieval(VECTORS, LABELS, VECTORS[:, :3], LABELS)
