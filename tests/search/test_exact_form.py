"""A root in exact form: after each of many random operations a search sees what naive loops over features see."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings, solve_head
from stream_odml.learn.drift import AffineMap
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.search.feature_cache import FeatureCache
from stream_odml.search.filters import Filters
from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.artifacts import BACKWARD, FORWARD, HEAD, STUDENT
from stream_odml.store.errors import UnknownVersion
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums
from tests.search.test_snapshot_oracle import TIDY, Player
from tests.store.exact_world import D as WIDE
from tests.store.exact_world import exact_root, fast_stage, land, new_trunk
from tests.store.world import DIM, Floats, Item, Twin, drift_pair, make_rows, new_root

CLASSES = [f"class '{i}'" for i in range(5)]


def head_of(classes: list[str], width: int, seed: int) -> DiscriminantHead:
    """A head that knows these classes; of every other seed one whose known part compares all items."""
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(len(classes), DIM))
    h = (np.repeat(means, 6, axis=0) + 0.5 * rng.normal(size=(6 * len(classes), DIM))).astype(np.float32)
    sums = ClassSums.of(Lift(DIM, width), encode(h), np.repeat(classes, 6).tolist())
    return solve_head(sums, HeadSettings(dim=3, width=width, knows_all=seed % 2 == 1, bonus_among_all=0.07))


class ExactTwin(Twin):
    """Remembers features; what another trunk made is mapped, and coded again."""

    def moved(self, vector: Floats, start: str, end: str) -> Floats:
        h = np.asarray(encode(vector[None].astype(np.float32)).decode()[0], np.float64)
        path = self.walk(start, end)
        if all(drift is None for drift in (self.step(a, b) for a, b in pairwise(path))):
            return h
        for a, b in pairwise(path):
            drift = self.step(a, b)
            h = h if drift is None else drift.A @ h + drift.b
        return np.asarray(encode(h[None]).decode()[0], np.float64)

    def step(self, a: str, b: str) -> AffineMap | None:
        child, direction = (b, 0) if self.parents[b] == a else (a, 1)
        return self.drifts[child][direction] if child in self.drifts else None


class ExactPlayer(Player):
    """Stages bring a new trunk or only a new head."""

    def __init__(self, root: str, seed: int) -> None:
        super().__init__(root, seed)
        self.twin: ExactTwin = ExactTwin(parents={self.writer.tree.head: None})
        self.heads: dict[str, DiscriminantHead] = {}

    def new_root(self, root: str) -> Any:
        return new_root(root, form="exact")

    def rows(self, *of: Any) -> Any:
        return make_rows(*of, codes="int8")

    def stage(self) -> None:
        waiting = list(self.writer.ledger.indexed.values())
        if not waiting:
            return
        self.tasks += 1
        task, shard_id = f"task {self.tasks}", waiting[0].shard_id
        self.writer.close_task(task, [shard_id], "test")
        version, parent = self.writer.begin_attempt(task), self.writer.tree.head
        known = sorted(self.rng.choice(CLASSES, size=int(self.rng.integers(1, 5)), replace=False).tolist())
        head = head_of(known, int(self.rng.integers(2)) * 4, self.tasks)
        data, rows = {HEAD: head.to_bytes()}, self.writer.store.gallery_rows().slice(0, 0)
        if self.rng.random() < 0.4:
            forward, backward = drift_pair(self.tasks)
            data |= {STUDENT: f"trunk {self.tasks}".encode()}
            data |= {FORWARD: forward.to_bytes(), BACKWARD: backward.to_bytes()}
            items = self.items[shard_id]
            raw = self.rng.normal(size=(len(items), DIM))
            rows = self.rows(shard_id, items, raw, version)
            self.twin.drifts[version] = (forward, backward)
            self.twin.rows += [(shard_id, p, version, raw[p]) for p in range(len(items))]
        refs = {name: self.writer.put_artifact(version, name, part) for name, part in data.items()}
        refs.setdefault(STUDENT, self.writer.tree.get(parent).artifacts[STUDENT])
        self.writer.commit_stage(version, parent, task, refs, rows)
        if self.rng.random() >= 0.8:  # a branch, not served
            self.writer.move_head(parent, "back")
        self.twin.parents[version], self.heads[version] = parent, head


def by_one_part(head: DiscriminantHead | None) -> bool:
    """Whether items of every class are compared by the known part."""
    return head is not None and head.settings.knows_all and len(head.known_dE) > 0


def whitened(head: DiscriminantHead, u: Floats) -> Floats:
    """The other part of a query."""
    z: Floats = head.new_DD @ (u - head.mean_E[:DIM])
    return z / np.linalg.norm(z)


def naive(head: DiscriminantHead | None, class_name: str, u: Floats) -> tuple[bool, Floats]:
    """(whether it is compared as a known one, its unit vector) of a direction, by the formulas as they stand."""
    if head is None:
        return False, u / np.linalg.norm(u)
    known = class_name in head.names and len(head.known_dE) > 0
    if not known and not by_one_part(head):
        return known, whitened(head, u)
    phi = np.concatenate([u, np.maximum(u @ head.lift.matrix / 32, 0)]) if head.lift.width else u
    z = head.known_dE @ (phi - head.mean_E)
    return known, z / np.linalg.norm(z)


def agree(snapshot: GallerySnapshot, player: ExactPlayer, step: str) -> None:
    twin, head, rng = player.twin, player.heads.get(snapshot.version), player.rng
    expected = twin.expected(snapshot.version)
    rows = {snapshot.columns.item_ids[int(r)]: int(r) for r in snapshot.rows()}
    assert rows.keys() == expected.keys(), step
    assert len(rows) == len(snapshot)
    d = len(head.known_dE) if head else 0
    assert snapshot.dim == d + DIM
    own: dict[str, tuple[bool, Floats]] = {}
    for name, row in rows.items():
        class_name, shard, u = expected[name]
        own[name] = known, z = naive(head, class_name, u)
        whole = np.zeros(snapshot.dim)
        whole[slice(0, d) if known or by_one_part(head) else slice(d, None)] = z
        found = snapshot.vectors(np.array([row]))[0]
        np.testing.assert_allclose(found, whole, atol=2e-4, err_msg=step)
        hit = snapshot.item(row)
        assert (hit.class_name, hit.shard_id) == (class_name, shard), step
    # A query by any version of the same trunk, as a client keeps it: its embedding, times anything.
    near = [v for v in twin.parents if snapshot.tree.same_trunk(v, snapshot.version)]
    made_by, u = str(rng.choice(near)), rng.normal(size=DIM)
    u /= np.linalg.norm(u)
    theirs = player.heads.get(made_by)
    parts = [u if theirs is None else whitened(theirs, u)]
    if theirs is not None and len(theirs.known_dE):
        parts.insert(0, naive(theirs, theirs.names[0], u)[1])
    query = np.concatenate(parts)[None].astype(np.float32)
    scale, bonus = 1.0, 0.0
    if head is not None and d:
        s = head.settings
        scale, bonus = (1.0, s.bonus_among_all) if s.knows_all else (s.new_scale, s.new_bonus)
    asked = {
        True: naive(head, head.names[0], u)[1] if head is not None and d else u,
        False: naive(head, "", u)[1],
    }
    scores = [
        float(asked[known] @ z) * (1.0 if known else scale) + (0.0 if known else bonus)
        for known, z in own.values()
    ]
    hits = snapshot.search(query, made_by, k=5)[0]
    np.testing.assert_allclose(
        [hit.score for hit in hits], np.sort(scores)[::-1][:5], atol=2e-3, err_msg=step
    )
    name = f"class '{rng.integers(5)}'"
    filtered = [s for s, key in zip(scores, own, strict=True) if expected[key][0] == name]
    hits = snapshot.search(query, made_by, k=3, filters=Filters(classes=frozenset({name})))[0]
    np.testing.assert_allclose(
        [hit.score for hit in hits], np.sort(filtered)[::-1][:3], atol=2e-3, err_msg=step
    )


@pytest.mark.parametrize(
    ("seed", "cached"),
    [(0, "a folder"), (1, ""), (2, "no name"), pytest.param(3, "a folder", marks=pytest.mark.slow)],
)
def test_every_reader_sees_what_naive_loops_see(tmp_path: Path, seed: int, cached: str) -> None:
    player = ExactPlayer(str(tmp_path / "root"), seed)
    store = Store.open(str(tmp_path / "root"))
    folder = tmp_path / "cache"
    cache = FeatureCache(folder if cached == "a folder" else None) if cached else None
    snapshot = GallerySnapshot.load(store, SearchSettings(kind="exact"), cache=cache)
    for number in range(40):
        step = f"step {number}: {player.play()}"
        store.refresh()
        snapshot = snapshot.refreshed(store)
        agree(snapshot, player, step)
        if cached == "a folder":
            copies = [file for file in folder.rglob("*") if file.is_file()]
            assert len(copies) <= len(store.tables["gallery"].present), step
    player.writer.maintain(TIDY)
    store.refresh()
    snapshot.refreshed(store)
    again = GallerySnapshot.load(store, SearchSettings(kind="exact"), cache=cache)
    agree(again, player, "reopened")
    if cached == "a folder":
        assert len([f for f in folder.rglob("*") if f.is_file()]) == len(store.tables["gallery"].present)
    player.writer.release()


def clustered(n_classes: int, each: int, seed: int) -> tuple[list[Item], Floats]:
    rng = np.random.default_rng(seed)
    means = np.abs(rng.normal(size=(n_classes, WIDE)))
    h = np.abs(np.repeat(means, each, axis=0) + 0.15 * rng.normal(size=(n_classes * each, WIDE)))
    return [Item(f"{seed}/{i}", f"{seed} class {i // each}") for i in range(len(h))], h


def found(snapshot: GallerySnapshot, z: Any, version: str, wanted: list[str]) -> float:
    hits = snapshot.search(z.astype(np.float32), version, k=1)
    return float(np.mean([row[0].class_name == name for row, name in zip(hits, wanted, strict=True)]))


def test_vectors_of_an_older_head_find_what_fresh_ones_find(tmp_path: Path) -> None:
    """The same under one trunk; and across trunks, mapped, nearly so."""
    writer = exact_root(str(tmp_path / "root"))
    items, h = clustered(8, 10, 1)
    more, g = clustered(8, 10, 2)
    asked, q = clustered(8, 10, 1)[0], np.abs(h + 0.05 * np.random.default_rng(3).normal(size=h.shape))
    forward, _ = drift_pair(1, WIDE)
    land(writer, "base", items, h)
    first = writer.tree.head
    base = new_trunk(writer, "task-0001", "base", items, h @ forward.A.T + forward.b, seed=1)
    land(writer, "second", more, g @ forward.A.T + forward.b)
    newest = fast_stage(writer, "task-0002", ["second"])
    store = Store.open(str(tmp_path / "root"))
    snapshot = GallerySnapshot.load(store, cache=FeatureCache())
    wanted, moved = [item.class_name for item in asked], (q @ forward.A.T + forward.b).astype(np.float32)
    fresh = found(snapshot, store.head_of(newest).embed(moved), newest, wanted)
    assert fresh > 0.8
    assert found(snapshot, store.head_of(base).embed(moved), base, wanted) >= 0.98 * fresh
    assert found(snapshot, store.head_of(first).embed(q.astype(np.float32)), first, wanted) >= 0.95 * fresh
    assert snapshot.dim_of(first) != snapshot.dim_of(newest)
    with pytest.raises(ValueError, match=rf"dimension 3, this gallery has {snapshot.dim}"):
        snapshot.search(np.ones((1, 3), np.float32), newest)
    made = store.head_of(base).embed(moved)
    writer.maintain(MaintenancePolicy(keep_versions=1, orphan_age=timedelta(0)))
    store = Store.open(str(tmp_path / "root"))
    assert store.tree.get(base).retired
    assert found(GallerySnapshot.load(store), made, base, wanted) >= 0.98 * fresh, "without its model, too"
    writer.forget("item", items[0].item_id)
    forget_in_sums(writer)
    for again in (store, Store.open(str(tmp_path / "root"))):
        again.refresh()
        with pytest.raises(
            UnknownVersion, match=r"something that it was solved of was erased.*embed the images"
        ):
            GallerySnapshot.load(again).search(made, base)
    assert not store.files.exists(store.tree.get(base).artifacts[HEAD].path), "its file is gone at once"
    writer.release()


def test_an_index_of_each_part(tmp_path: Path) -> None:
    """Large parts are searched by an index, which grows, and goes on when the head changes."""
    writer = exact_root(str(tmp_path / "root"))
    items, h = clustered(12, 40, 1)
    land(writer, "base", items, h)
    new_trunk(writer, "task-0001", "base", items, h, seed=1)
    settings = SearchSettings(kind="ivf")
    store = Store.open(str(tmp_path / "root"))
    snapshot = GallerySnapshot.load(store, settings)
    more, g = clustered(6, 30, 2)
    land(writer, "second", more, g)
    store.refresh()
    snapshot = snapshot.refreshed(store)
    assert [part.segment.n for part in snapshot.parts] == [480, 180]
    version = fast_stage(writer, "task-0002", ["second"])
    store.refresh()
    snapshot = snapshot.refreshed(store)
    assert [part.segment.n for part in snapshot.parts] == [660, 0]
    assert snapshot.searcher == "ivf"
    z = store.head_of(version).embed(np.concatenate([h, g]).astype(np.float32))
    hits = snapshot.search(z, version, k=1)
    assert (
        np.mean([row[0].item_id == item.item_id for row, item in zip(hits, items + more, strict=True)]) > 0.95
    )
    writer.release()


def test_a_copy_that_cannot_be_written_or_read_is_done_without(tmp_path: Path) -> None:
    writer = exact_root(str(tmp_path / "root"))
    items, h = clustered(3, 4, 1)
    land(writer, "base", items, h)
    store = Store.open(str(tmp_path / "root"))
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    [path] = store.blocks
    whole = store.features(path)
    for cache in (FeatureCache(blocked), FeatureCache(tmp_path / "cache"), FeatureCache(tmp_path / "cache")):
        np.testing.assert_array_equal(cache.features(store, path).codes_nD, whole.codes_nD)
        np.testing.assert_array_equal(cache.features(store, path).scale_n, whole.scale_n)
    [copy] = (tmp_path / "cache").rglob("*.int8")
    assert copy.stat().st_size == len(items) * (WIDE + 4)
    copy.write_bytes(copy.read_bytes()[:-3])
    np.testing.assert_array_equal(
        FeatureCache(tmp_path / "cache").features(store, path).codes_nD, whole.codes_nD
    )
    left = copy.with_name("half.aside")
    left.write_bytes(b"x")
    FeatureCache(tmp_path / "cache").follow(store)
    assert not left.exists()
    assert copy.exists()
    writer.release()
