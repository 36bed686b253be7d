"""Random streams of operations: the store, its incremental snapshots and a naive twin must agree after each step."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.writer import IngestBatch, Writer
from tests.store.world import DIM, Floats, Item, Shard, Twin, commit_stage, drift_pair, make_rows, new_root

TIDY = MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(0))


class Player:
    """Plays random operations on a root and on its twin."""

    def __init__(self, root: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.writer = self.new_root(root)
        self.twin = Twin(parents={self.writer.tree.head: None})
        self.tasks = 0
        self.shards = 0
        self.items: dict[str, list[Item]] = {}

    def new_root(self, root: str) -> Writer:
        return new_root(root)

    def rows(self, *of: Any) -> pa.Table:
        return make_rows(*of)

    def ingest(self) -> None:
        shard_id = f"s{self.shards}"
        self.shards += 1
        numbers = self.rng.choice(40, size=int(self.rng.integers(1, 7)), replace=True)
        items = [Item(f"item {i}", f"class '{self.rng.integers(5)}'") for i in numbers]
        raw = self.rng.normal(size=(len(items), DIM))
        self.items[shard_id] = items
        self.writer.record_landed([Shard(shard_id)])
        landed = self.twin.tick()
        if self.rng.random() < 0.3:
            self.forget()  # between landing and indexing: must cover the shard
        made_by = str(self.rng.choice(list(self.twin.parents)))  # an indexer may lag behind the head
        self.writer.commit_ingest(IngestBatch([shard_id], self.rows(shard_id, items, raw, made_by)))
        self.remember(shard_id, landed, items, raw, made_by)

    def remember(self, shard_id: str, landed: int, items: list[Item], raw: Floats, version: str) -> None:
        # The writer drops what was forgotten before it was indexed; such a row replaces nothing.
        self.twin.shards[shard_id] = (landed, self.twin.tick(), items)
        kept = [not self.twin.dead(shard_id, item) for item in items]
        blank = [
            item if keep else Item(f"dropped {shard_id} {p}", item.class_name)
            for p, (item, keep) in enumerate(zip(items, kept, strict=True))
        ]
        self.twin.shards[shard_id] = (landed, self.twin.clock, blank)
        self.twin.rows += [(shard_id, p, version, raw[p]) for p in range(len(items))]
        for item, keep in zip(blank, kept, strict=True):
            if not keep:
                self.twin.tombstones.append((self.twin.tick(), "item", item.item_id))

    def forget(self) -> None:
        kind, name = [
            ("class", f"class '{self.rng.integers(5)}'"),
            ("item", f"item {self.rng.integers(40)}"),
        ][int(self.rng.integers(2))]
        self.writer.forget(kind, name)  # type: ignore[arg-type]
        self.twin.tombstones.append((self.twin.tick(), kind, name))

    def stage(self) -> None:
        waiting = list(self.writer.ledger.indexed.values())
        if not waiting:
            return
        self.tasks += 1
        task, shard_id = f"task {self.tasks}", waiting[0].shard_id
        self.writer.close_task(task, [shard_id], "test")
        version_id, parent = self.writer.begin_attempt(task), self.writer.tree.head
        items = self.items[shard_id]
        raw = self.rng.normal(size=(len(items), DIM))
        commit_stage(self.writer, task, make_rows(shard_id, items, raw, version_id), self.tasks)
        if self.rng.random() >= 0.8:  # a branch, not served
            self.writer.move_head(parent, "back")
        self.twin.parents[version_id] = parent
        self.twin.drifts[version_id] = drift_pair(self.tasks)
        self.twin.rows += [(shard_id, p, version_id, raw[p]) for p in range(len(items))]

    def move(self) -> None:
        self.writer.move_head(str(self.rng.choice(list(self.twin.parents))), "test")

    def tidy(self) -> None:
        self.writer.maintain(TIDY)

    def play(self) -> str:
        names = ["ingest", "forget", "stage", "move", "tidy"]
        name = str(self.rng.choice(names, p=[0.45, 0.15, 0.2, 0.1, 0.1]))
        getattr(self, name)()
        return name


def agree(snapshot: GallerySnapshot, twin: Twin, step: str, rng: np.random.Generator) -> None:
    expected = twin.expected(snapshot.version)
    rows = snapshot.rows()
    found = {snapshot.columns.item_ids[int(r)]: int(r) for r in rows}
    assert len(found) == len(rows) == len(snapshot), f"an item twice after {step}"
    assert found.keys() == expected.keys(), step
    if not found:
        assert snapshot.search(rng.normal(size=(1, DIM)).astype("f4"), snapshot.version) == [[]]
        return
    stored = np.stack([snapshot.vectors(np.array([r]))[0] for r in found.values()])
    naive = np.stack([expected[name][2] for name in found])
    np.testing.assert_allclose(stored, naive, atol=2e-4, err_msg=step)
    for name, row in found.items():
        hit = snapshot.item(row)
        assert (hit.class_name, hit.shard_id) == expected[name][:2], step
    made_by = str(rng.choice(list(twin.parents)))
    query = rng.normal(size=(1, DIM)).astype(np.float32)
    there = twin.moved(query[0].astype(float), made_by, snapshot.version)
    scores = naive @ (there / np.linalg.norm(there))
    hits = snapshot.search(query, made_by, k=5)[0]
    np.testing.assert_allclose([h.score for h in hits], np.sort(scores)[::-1][:5], atol=5e-4, err_msg=step)


@pytest.mark.parametrize(
    ("seed", "kind"),
    [
        (0, "exact"),
        (2, "fp16"),
        pytest.param(1, "exact", marks=pytest.mark.slow),
        pytest.param(3, "exact", marks=pytest.mark.slow),
    ],
)
def test_every_reader_sees_what_the_naive_twin_sees(tmp_path: Path, seed: int, kind: str) -> None:
    player = Player(str(tmp_path / "root"), seed)
    rng = np.random.default_rng(seed)
    store = Store.open(str(tmp_path / "root"))
    settings = SearchSettings(kind="exact")
    if kind == "fp16":
        settings = SearchSettings(kind="fp16", fresh_share=0.01)
    snapshot = GallerySnapshot.load(store, settings)
    for number in range(45):
        step = f"step {number}: {player.play()}"
        store.refresh()
        snapshot = snapshot.refreshed(store)
        if kind == "exact":
            agree(snapshot, player.twin, step, rng)
        else:
            assert {snapshot.item(int(r)).item_id for r in snapshot.rows()} == player.twin.expected(
                snapshot.version
            ).keys()
    agree(
        GallerySnapshot.load(Store.open(str(tmp_path / "root")), SearchSettings(kind="exact")),
        player.twin,
        "reopened",
        rng,
    )
    player.writer.release()
