"""Every kind of index, against loops: what it finds, leaves out and weighs, and that a configuration may name it."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.search.exact import Mask
from stream_odml.search.index_kinds import KINDS
from stream_odml.search.search import IndexSearcher, SearchSettings, build_searcher
from stream_odml.store.tables import FloatArray

K = 5


def unit_rows(n: int, seed: int = 0) -> FloatArray:
    """Vectors around the same twenty centres, as the images of twenty classes lie."""
    centres, random = np.random.default_rng(7).normal(size=(20, 16)), np.random.default_rng(seed)
    rows = centres[random.integers(20, size=n)] + random.normal(0, 0.3, (n, 16))
    return np.ascontiguousarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


def built(kind: str, vectors: FloatArray) -> IndexSearcher:
    searcher = build_searcher(vectors, SearchSettings(kind=kind))
    assert searcher is not None
    return searcher


def share_found(searcher: IndexSearcher, vectors: FloatArray, mask: Mask | None = None) -> float:
    """Share of the exact K nearest that the index finds."""
    queries = unit_rows(50, seed=1)
    _, found = searcher.search(queries, K, mask)
    allowed = np.arange(len(vectors)) if mask is None else np.flatnonzero(mask)
    exact = allowed[np.argsort(-(queries @ vectors[allowed].T), axis=1)[:, :K]]
    return float(np.mean([len({*a} & {*b}) / K for a, b in zip(exact, found.tolist(), strict=True)]))


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_the_nearest(kind: str) -> None:
    vectors = unit_rows(3000)
    assert share_found(built(kind, vectors), vectors) > 0.9


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_leaves_rows_out(kind: str) -> None:
    vectors, mask = unit_rows(3000), np.arange(3000) % 2 == 0
    searcher = built(kind, vectors)
    _, found = searcher.search(unit_rows(50, seed=1), K, mask)
    assert not (found[found >= 0] % 2).any()
    assert share_found(searcher, vectors, mask) > 0.8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("place", ["near", "far", "anywhere"])
@pytest.mark.parametrize("passing", [0, 1, 20, 200, 2000])
def test_what_passes_a_mask_is_found_however_little_and_wherever_it_lies(
    kind: str, place: str, passing: int
) -> None:
    """Rows that pass are the nearest to the queries, as a class is, those that are farthest from them, or any."""
    vectors = unit_rows(4000)
    far = np.argsort(vectors @ unit_rows(50, seed=1).mean(axis=0))
    ranked = {"far": far, "near": far[::-1], "anywhere": np.random.default_rng(2).permutation(4000)}[place]
    mask = np.zeros(4000, bool)
    mask[ranked[:passing]] = True
    searcher, queries = built(kind, vectors), unit_rows(50, seed=1)
    _, found = searcher.search(queries, K, mask)
    assert ((found >= 0).sum(axis=1) == min(K, passing)).all()
    assert mask[found[found >= 0]].all()
    assert not passing or share_found(searcher, vectors, mask) >= 0.95 * min(K, passing) / K


@pytest.mark.parametrize("kind", KINDS)
def test_as_many_are_found_as_are_asked_for(kind: str) -> None:
    vectors = unit_rows(3000)
    assert (built(kind, vectors).search(unit_rows(5, seed=1), 2500)[1] >= 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_it_grows_and_leaves_the_one_before_as_it_was(kind: str) -> None:
    vectors = unit_rows(3000)
    small = built(kind, vectors[:2000])
    grown = small.grown(vectors[2000:])
    assert (small.n, grown.n) == (2000, 3000)
    assert share_found(grown, vectors) > 0.85
    assert small.search(vectors[2500:2501], 3)[1].max() < 2000
    assert grown.search(vectors[2500:2501], 1)[1].tolist() == [[2500]]


@pytest.mark.parametrize("kind", KINDS)
def test_it_weighs_at_least_half_its_vectors_and_gives_them_back(kind: str) -> None:
    vectors = unit_rows(1000)
    searcher = built(kind, vectors)
    assert vectors.nbytes // 2 <= searcher.nbytes < 10 * vectors.nbytes
    assert np.allclose(searcher.vectors(np.array([3, 7])), vectors[[3, 7]], atol=5e-3)


def test_a_configuration_may_name_each_and_no_other() -> None:
    choices = get_args(ServiceOptions.model_fields["search"].annotation)
    assert {*choices} == {"auto", "exact", *KINDS}
