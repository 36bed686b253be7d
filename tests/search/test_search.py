"""Searchers, filters and grouping against numpy."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

from stream_odml.search import exact
from stream_odml.search.calibration import BATCHES, matrix_path_from
from stream_odml.search.filters import Filters
from stream_odml.search.index_kinds import Clusters
from stream_odml.search.search import SearchSettings, build_searcher, search_exactly
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.errors import UnknownVersion
from stream_odml.store.store import Store
from stream_odml.store.tables import FloatArray
from stream_odml.store.writer import IngestBatch
from tests.store.world import DIM, Item, Shard, ingest, make_rows, new_root


def clustered(n: int, d: int = 16, seed: int = 0) -> FloatArray:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(50, d))
    vectors = (centres[rng.integers(50, size=n)] + 0.3 * rng.normal(size=(n, d))).astype(np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), dtype=np.float32)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, None])
@pytest.mark.parametrize("batch", [1, 64])
def test_exact_search_is_numpys(share: float | None, batch: int) -> None:
    vectors, queries = clustered(3000), clustered(batch, seed=1)
    mask = None if share is None else np.random.default_rng(0).random(3000) < share
    scores, rows = search_exactly(vectors, queries, 7, mask)
    naive = queries @ vectors.T
    if mask is not None:
        naive[:, ~mask] = -np.inf
    best = -np.sort(-naive, axis=1)[:, :7]
    np.testing.assert_allclose(np.where(rows < 0, -np.inf, scores), best, atol=1e-5)
    assert (rows >= 0).sum() == batch * min(7, 3000 if mask is None else int(mask.sum()))
    if mask is not None:
        assert mask[rows[rows >= 0]].all()


def test_more_neighbours_than_items_and_no_items_at_all() -> None:
    scores, rows = search_exactly(clustered(3), clustered(2), 5)
    assert (rows[:, 3:] == -1).all()
    assert scores.shape == (2, 5)
    assert (search_exactly(np.empty((0, 16), np.float32), clustered(2), 5)[1] == -1).all()


@pytest.mark.parametrize("kind", ["fp16", "ivf", "hnsw"])
def test_an_index_finds_what_it_says_it_finds(kind: str) -> None:
    vectors, queries = np.split(clustered(4050), [4000])
    built = build_searcher(vectors, SearchSettings(kind=kind))
    assert built is not None
    assert built.recall >= 0.95
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    _, found = built.search(queries, 10)
    recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
    assert recall >= 0.9
    mask = np.arange(4000) % 2 == 0
    assert mask[built.search(queries, 10, mask)[1]].all()
    grown = built.grown(clustered(10, seed=9))
    assert (grown.n, built.n) == (4010, 4000)
    np.testing.assert_allclose(
        grown.vectors(np.array([5, 4001])), [vectors[5], clustered(10, seed=9)[1]], atol=1e-3
    )


def test_auto_takes_the_approximate_one_above_its_size() -> None:
    settings = SearchSettings(approximate_above=1000)
    assert build_searcher(clustered(900), settings) is None
    larger = build_searcher(clustered(2000), settings)
    assert larger is not None
    assert larger.kind == "ivf"
    with pytest.raises(ValueError, match="search kind"):
        SearchSettings(kind="fast")


@pytest.mark.parametrize("nq", [1, 3, 40])
def test_every_way_of_exact_search_finds_the_same(nq: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        exact, "block_rows", lambda _: 64
    )  # each shorter than k, and the last one shorter still
    rows, queries = clustered(1000), clustered(nq, seed=3)
    scores, found = exact.inner_product(queries, rows, 70)
    products = queries @ rows.T
    np.testing.assert_allclose(scores, -np.sort(-products, axis=1)[:, :70], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(products, found, axis=1), scores, atol=1e-5)
    assert all(len(set(row)) == 70 for row in found.tolist())


def test_calibration_leaves_faiss_on_the_measured_switch() -> None:
    search_exactly(clustered(10), clustered(2), 5)
    crossover = matrix_path_from(16)
    assert crossover in (*BATCHES, 2 * BATCHES[-1])
    assert faiss.cvar.distance_compute_blas_threshold == crossover * 16


NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def filled(root: Path, n: int = 60) -> tuple[GallerySnapshot, FloatArray]:
    writer = new_root(str(root))
    items = [Item(f"i{i}", f"class {i % 6}") for i in range(n)]
    more: dict[str, Any] = {
        "attributes": [{"colour": "red" if i % 2 else "blue", "n": str(i)} for i in range(n)],
        "times": [NOON + timedelta(minutes=i) if i else None for i in range(n)],
        "held_out": [i % 5 == 0 for i in range(n)],
    }
    raw = ingest(writer, "a", items, **more)
    writer.release()
    return GallerySnapshot.load(Store.open(str(root))), raw.astype(np.float32)


FILTERS: list[tuple[Filters, Callable[[int], bool]]] = [
    (Filters(classes=frozenset({"class 1", "class 2", "unheard of"})), lambda i: i % 6 in (1, 2)),
    (Filters(attributes={"colour": "red"}), lambda i: i % 2 == 1),
    (Filters(attributes={"colour": "red", "n": "7"}), lambda i: i == 7),
    (Filters(since=NOON + timedelta(minutes=10), until=NOON + timedelta(minutes=20)), lambda i: 10 <= i < 20),
    (Filters(until=NOON + timedelta(days=1)), lambda i: i > 0),
    (Filters(classes=frozenset({"class 3"})), lambda i: i % 6 == 3),
    (Filters(classes=frozenset()), lambda i: False),
]


def test_filters_keep_exactly_what_passes(tmp_path: Path) -> None:
    snapshot, raw = filled(tmp_path)
    for filters, passes in FILTERS:
        hits = snapshot.search(raw[:1], snapshot.version, k=60, filters=filters)[0]
        assert {h.item_id for h in hits} == {f"i{i}" for i in range(60) if passes(i)}, filters
        assert [h.score for h in hits] == sorted((h.score for h in hits), reverse=True)
    assert not Filters()


def test_a_hit_says_all_that_is_known_of_the_item(tmp_path: Path) -> None:
    snapshot, raw = filled(tmp_path)
    hit = snapshot.search(raw[[7]], snapshot.version, k=1)[0][0]
    assert hit[:2] == ("i7", "class 1")
    assert hit.score == pytest.approx(1, abs=1e-5)
    assert (hit.version, hit.shard_id) == (snapshot.version, "a")
    assert hit.attributes == {"colour": "red", "n": "7"}
    assert hit.time == NOON + timedelta(minutes=7)
    assert snapshot.search(raw[[0]], snapshot.version, k=1)[0][0].time is None
    assert snapshot.find("i7") == hit.row
    assert snapshot.find("nobody") is None


@pytest.mark.parametrize("size", [1, 2])
def test_grouping_gives_the_nearest_classes_and_the_best_of_each(tmp_path: Path, size: int) -> None:
    snapshot, raw = filled(tmp_path)
    query = raw[3]
    cosines = raw @ query / np.linalg.norm(raw, axis=1) / np.linalg.norm(query)
    by_class = {c: sorted(cosines[c::6], reverse=True) for c in range(6)}
    nearest = sorted(by_class, key=lambda c: -by_class[c][0])[:4]
    hits = snapshot.search(query[None], snapshot.version, k=4, group_by="class", group_size=size)[0]
    for c in nearest:
        mine = [h.score for h in hits if h.class_name == f"class {c}"]
        np.testing.assert_allclose(mine, by_class[c][:size], atol=1e-5)
    assert len(hits) == 4 * size


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    snapshot, raw = filled(tmp_path)
    with pytest.raises(UnknownVersion, match="v9"):
        snapshot.search(raw[:1], "v9")
    with pytest.raises(ValueError, match="dimension 3, this gallery has 6"):
        snapshot.search(raw[:1, :3], snapshot.version)
    with pytest.raises(ValueError, match="NaN"):
        snapshot.search(np.full((1, DIM), np.nan, np.float32), snapshot.version)
    with pytest.raises(ValueError, match="float32"):
        snapshot.search(raw[0], snapshot.version)
    with pytest.raises(ValueError, match="at least 1"):
        snapshot.search(raw[:1], snapshot.version, k=0)
    with pytest.raises(ValueError, match="name the version"):
        snapshot.search(raw[:1], "")
    assert snapshot.search(raw[:0], snapshot.version) == []


def test_a_snapshot_in_use_never_changes(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "s", [Item(f"i{i}", "c") for i in range(20)])
    store = Store.open(str(tmp_path))
    old = GallerySnapshot.load(store)
    query = np.ones((1, DIM), np.float32)
    before = old.search(query, old.version, k=50)
    snapshots = [old]
    for number in range(40):
        ingest(writer, f"s{number}", [Item(f"i{number % 20}", "d"), Item(f"new {number}", "d")], seed=number)
        store.refresh()
        snapshots.append(snapshots[-1].refreshed(store))
    first, last = (of.parts[0].segment.fresh.rows for of in (old, snapshots[-1]))
    assert np.shares_memory(first, last), "appends were copied though there was room"
    assert old.search(query, old.version, k=50) == before
    assert [len(s) for s in snapshots] == [20 + i for i in range(41)]
    branch = old.refreshed(store)  # from an old snapshot: must not write over what the newer ones see
    assert {h.item_id for h in branch.search(query, old.version, k=99)[0]} == {
        h.item_id for h in snapshots[-1].search(query, old.version, k=99)[0]
    }
    assert [len(s) for s in snapshots] == [20 + i for i in range(41)]
    assert snapshots[5].search(query, old.version, k=1)[0][0].row < snapshots[5].columns.n
    writer.release()


@pytest.mark.parametrize("kind", ["exact", "fp16", "ivf"])
def test_many_replaced_items_are_compacted_away(tmp_path: Path, kind: str) -> None:
    writer = new_root(str(tmp_path))
    items = [Item(f"i{i}", "c") for i in range(400)]
    ingest(writer, "s", items)
    store = Store.open(str(tmp_path))
    snapshot = GallerySnapshot.load(store, SearchSettings(kind=kind))
    raw = ingest(writer, "again", items, seed=5).astype(np.float32)
    store.refresh()
    snapshot = snapshot.refreshed(store)
    assert (len(snapshot), len(snapshot.dead)) == (400, 0)
    assert snapshot.search(raw[:1], snapshot.version, k=1)[0][0].score == pytest.approx(1, abs=1e-3)
    assert snapshot.memory()["columns"] > 0
    writer.release()


def test_fresh_rows_join_the_main_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_odml.search.segment.MAX_FRESH_ROWS", 10)
    writer = new_root(str(tmp_path))
    ingest(writer, "s", [Item(f"i{i}", "c") for i in range(100)])
    store = Store.open(str(tmp_path))
    snapshot = GallerySnapshot.load(store, SearchSettings(kind="fp16"))
    sizes = []
    for number in range(8):
        writer.record_landed([Shard(f"s{number}")])
        raw = np.random.default_rng(number).normal(size=(4, DIM))
        rows = make_rows(f"s{number}", [Item(f"n{number} {i}", "c") for i in range(4)], raw, writer.tree.head)
        writer.commit_ingest(IngestBatch([f"s{number}"], rows))
        store.refresh()
        snapshot = snapshot.refreshed(store)
        assert snapshot.main is not None
        sizes.append(snapshot.main.n)
        hit = snapshot.search(raw[:1].astype(np.float32), snapshot.version, k=1)[0][0]
        assert hit.item_id == f"n{number} 0"
    assert sizes == [100, 100, 112, 112, 112, 124, 124, 124]
    writer.release()


def test_clusters_move_with_the_space_and_are_found_anew_when_they_no_longer_serve() -> None:
    vectors = clustered(4000)
    settings = SearchSettings("ivf")
    first = build_searcher(vectors, settings)
    assert first is not None
    turn = np.linalg.qr(np.random.default_rng(3).normal(size=(vectors.shape[1],) * 2))[0].astype(np.float32)
    rows = np.arange(len(vectors))[::-1].copy()  # another order, and some that the first one never held
    rows[:50] = -1
    moved = np.ascontiguousarray(vectors[::-1] @ turn.T)
    clusters = first.clusters(rows)
    assert clusters is not None
    kept = build_searcher(moved, settings, clusters)
    assert kept is not None
    assert kept.recall >= settings.recall_target
    assert kept.width <= 2 * first.width
    np.testing.assert_allclose(kept.vectors(np.array([0, 60, 3999])), moved[[0, 60, 3999]], rtol=1e-6)
    assert (kept.search(moved[:200], 1)[1][:, 0] == np.arange(200)).mean() > 0.95
    shuffled = Clusters(np.random.default_rng(4).permutation(clusters.lists), clusters.count, 1)
    again = build_searcher(moved, settings, shuffled)
    assert again is not None
    assert again.recall >= settings.recall_target
