"""The first pass in half precision against sums in float64: nothing near may be missed, whatever the rows look like."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_odml.search import halves as halves_module
from stream_odml.search import segment as segment_module
from stream_odml.search.exact import inner_product
from stream_odml.search.halves import BLOCK, MAX_K, TILE, Halves, worth_from
from stream_odml.search.search import search_exactly
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.store import Store
from stream_odml.store.tables import FloatArray
from tests.store.world import Item, ingest, new_root

D = 48


def unit(rows: NDArray[Any]) -> FloatArray:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), dtype=np.float32)


def scattered(n: int, seed: int = 0) -> FloatArray:
    return unit(np.random.default_rng(seed).normal(size=(n, D)))


def hardly_apart(n: int) -> FloatArray:
    """Rows that differ by far less than a half can show, around one direction."""
    return unit(scattered(1, 7) + 1e-4 * scattered(n))


def cancelling(n: int, noise: float) -> FloatArray:
    """Rows of nearly equal values, whose sums with :func:`balanced` queries are little more than rounding."""
    return unit(1 + noise * np.random.default_rng(2).normal(size=(n, D)))


def balanced(n: int) -> FloatArray:
    signs = np.tile([1.0, -1.0], D // 2)
    return unit(np.random.default_rng(3).permuted(np.tile(signs, (n, 1)), axis=1))


ROWS = {
    "scattered": scattered(2 * BLOCK + 7),
    "hardly apart": hardly_apart(BLOCK + TILE),
    "all the same": np.repeat(scattered(1), BLOCK, axis=0),
    "cancelling": cancelling(BLOCK + 1, 0.02),
    "cancelling wholly": cancelling(BLOCK + 1, 0.001),
    "few": scattered(TILE - 1),
    "none": scattered(0),
}


@pytest.mark.parametrize("name", ROWS)
@pytest.mark.parametrize("k", [1, 10, MAX_K])
def test_the_nearest_are_those_of_float64(name: str, k: int) -> None:
    rows = ROWS[name]
    queries = unit(
        np.concatenate([scattered(60, 3), balanced(6), rows[:3] + 0.1 * scattered(len(rows[:3]), 4)])
    )
    scores, found = Halves.empty(D).grown(rows).nearest(queries, rows, k)
    sums = queries.astype(np.float64) @ rows.astype(np.float64).T
    best = -np.sort(-sums, axis=1)[:, :k]
    assert scores.shape == found.shape == (len(queries), k)
    there = best.shape[1]
    np.testing.assert_allclose(scores[:, :there], best, atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(sums, found[:, :there], axis=1), best, atol=1e-6)
    assert all(len(set(row.tolist())) == there for row in found[:, :there])
    assert (found[:, there:] == -1).all()
    assert np.isneginf(scores[:, there:]).all()


def test_without_the_bound_neighbours_are_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    """That the rows above are hard enough for the test above to mean something."""
    rows, queries = ROWS["cancelling"], balanced(64)
    halves, right = Halves.empty(D).grown(rows), search_exactly(rows, queries, 10)[1]
    assert (halves.nearest(queries, rows, 10)[1] == right).all()
    monkeypatch.setattr(Halves, "error", lambda *_: 0.0)
    assert (halves.nearest(queries, rows, 10)[1] != right).any()


def test_few_rows_are_compared_in_full_unless_all_are_close(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[int] = []

    def counted(queries: FloatArray, rows: FloatArray, k: int) -> object:
        compared.append(len(rows))
        return inner_product(queries, rows, k)

    monkeypatch.setattr(halves_module, "inner_product", counted)
    for name, most in (("scattered", TILE), ("hardly apart", BLOCK + TILE)):
        compared.clear()
        Halves.empty(D).grown(ROWS[name]).nearest(scattered(1, 7), ROWS[name], 10)
        assert sum(compared) <= most
        assert (max(compared) >= BLOCK) == (name == "hardly apart")


def test_growing_leaves_what_was_there() -> None:
    rows = ROWS["scattered"]
    first = Halves.empty(D).grown(rows[:500])
    both = first.grown(rows[500:2000])
    other = first.grown(-rows[500:900])
    at_once = Halves.empty(D).grown(rows[:2000])
    assert (both.bits.rows == at_once.bits.rows).all()
    assert both.off == at_once.off
    assert (len(first), len(other), both.nbytes) == (500, 900, 2000 * D * 2)
    assert (other.bits.rows[:500] == at_once.bits.rows[:500]).all()


def test_a_snapshot_keeps_halves_of_what_it_searches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_module, "MIN_ROWS", 4)
    monkeypatch.setattr("stream_odml.search.search.worth_from", lambda dim: 2)
    monkeypatch.setattr(segment_module, "worth_from", lambda dim: 2)
    writer = new_root(str(tmp_path), dim=D)
    ingest(writer, "few", [Item(f"{i}", "c") for i in range(3)])
    store = Store.open(str(tmp_path))
    snapshot = GallerySnapshot.load(store)
    assert snapshot.parts[0].segment.halves is None
    assert snapshot.memory()["halves"] == 0
    ingest(writer, "more", [Item(f"m{i}", "c") for i in range(97)], seed=1)
    ingest(writer, "again", [Item("m5", "c")], seed=2)
    writer.forget("item", "m7")
    store.refresh()
    for seen in (snapshot.refreshed(store), GallerySnapshot.load(store)):
        halves = seen.parts[0].segment.halves
        assert halves is not None
        assert len(halves) == seen.columns.n
        assert seen.memory()["halves"] == len(halves) * D * 2
        queries = scattered(8, 5)
        many = seen.search(queries, seen.version, 100)
        single = [seen.search(query[None], seen.version, 100)[0] for query in queries]
        assert [[hit.item_id for hit in hits] for hits in many] == [[h.item_id for h in s] for s in single]
        assert len(many[0]) == 99
    writer.release()


def test_how_many_queries_it_takes_is_measured_once() -> None:
    assert worth_from(32) is worth_from(32)
    assert worth_from(32) >= 2
