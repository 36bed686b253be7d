"""What is forgotten leaves the disk; what may be needed stays."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.artifacts import BACKWARD, FORWARD, STUDENT
from stream_odml.store.errors import ArtifactCorrupt
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.tables import quarantine_rows
from stream_odml.store.writer import IngestBatch
from tests.store.world import Item, Shard, commit_stage, ingest, make_rows, new_root

NOW: dict[str, Any] = {"retention": timedelta(0), "orphan_age": timedelta(0)}


def stored_bytes(root: Path) -> bytes:
    return b"".join(p.read_bytes() for p in root.rglob("*.parquet"))


def test_a_forgotten_class_leaves_tables_thumbnails_and_held_out_images(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("a/0", "secret's class"), Item("a/1", "cat")])
    for folder in ("thumbnails", "holdout"):
        table = pa.table({"item_id": ["a/0", "a/1"], "class_name": ["secret's class", "cat"]})
        (tmp_path / folder).mkdir()
        pq.write_table(table, tmp_path / folder / "a.parquet", compression="NONE")
    assert b"secret's class" in stored_bytes(tmp_path)
    writer.forget("class", "secret's class")
    assert len(GallerySnapshot.load(writer.store)) == 1  # at once, before any row goes
    report = writer.maintain(MaintenancePolicy(compact_files=2, **NOW))
    assert (report.rows_purged, report.shard_files_rewritten) == (1, 2)
    left = pa.concat_tables(
        [pq.read_table(p, columns=["item_id"]) for p in (tmp_path / "gallery").glob("*.parquet")]
    )
    assert left["item_id"].to_pylist() == ["a/1"]
    for folder in ("thumbnails", "holdout"):
        assert pq.read_table(tmp_path / folder / "a.parquet")["item_id"].to_pylist() == ["a/1"]
    ingest(writer, "b", [Item("b/0", "secret's class")], seed=1)
    assert len(GallerySnapshot.load(writer.store)) == 2
    assert writer.maintain(MaintenancePolicy(**NOW)).rows_purged == 0
    writer.release()


def test_a_replaced_item_does_not_come_back_when_its_successor_is_forgotten(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("x", "old class")])
    ingest(writer, "b", [Item("x", "new class")], seed=1)
    writer.forget("class", "new class")
    assert len(GallerySnapshot.load(writer.store)) == 0
    assert writer.maintain(MaintenancePolicy(**NOW)).rows_purged == 2
    assert not writer.store.blocks
    writer.release()


def test_retired_versions_keep_their_maps_and_loose_files_go(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    root = writer.tree.head
    raw = ingest(writer, "a", [Item("x", "c")])
    for number in (1, 2):
        if number == 2:
            ingest(writer, "b", [Item("y", "c")], seed=2)
        writer.close_task(f"task-000{number}", ["ab"[number - 1]], "test")
        commit_stage(writer, f"task-000{number}", None, number)
    middle, head = list(writer.tree.versions)[1:]
    writer.put_artifact("v0003-deadbeef", STUDENT, b"of nobody")
    attempt = writer.put_artifact(head, "bank.safetensors", b"old bank")
    writer.replace_artifact(head, "bank.safetensors", b"old bank", "first")
    writer.replace_artifact(head, "bank.safetensors", b"without the class", "forget")
    report = writer.maintain(MaintenancePolicy(keep_versions=1, **NOW))
    assert report.versions_retired == 2
    assert not (tmp_path / attempt.path).exists()
    assert not (tmp_path / "artifacts" / "v0003-deadbeef").exists()
    store = Store.open(str(tmp_path))
    assert store.artifact(head, "bank.safetensors") == b"without the class"
    with pytest.raises(ArtifactCorrupt):
        store.artifact(middle, STUDENT)
    assert store.artifact(middle, FORWARD)
    assert store.artifact(middle, BACKWARD)
    with pytest.raises(ValueError, match="retired"):
        writer.move_head(root, "too late")
    hit = GallerySnapshot.load(store).search(raw.astype(np.float32), root, k=1)[0][0]
    assert hit.item_id == "x"
    assert hit.score == pytest.approx(1, abs=1e-5)
    writer.release()


def test_an_attempt_under_way_keeps_its_artifacts(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("x", "c")])
    writer.close_task("task-0001", ["a"], "test")
    version = writer.begin_attempt("task-0001")
    ref = writer.put_artifact(version, STUDENT, b"half way")
    writer.maintain(MaintenancePolicy(**NOW))
    assert (tmp_path / ref.path).exists()
    writer.refuse(version, "task-0001", "no")
    writer.maintain(MaintenancePolicy(**NOW))
    assert not (tmp_path / ref.path).exists()
    writer.release()


def test_a_policy_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        MaintenancePolicy(compact_files=1)
    with pytest.raises(ValueError, match="negative"):
        MaintenancePolicy(retention=timedelta(hours=-1))


def test_files_that_maintenance_replaced_stay_for_the_retention_and_no_longer(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    for i in range(4):
        ingest(writer, f"s{i}", [Item(f"{i}", "c")], seed=i)
    replaced = set((tmp_path / "gallery").glob("*.parquet"))
    policy = MaintenancePolicy(compact_files=2, retention=timedelta(seconds=2))
    assert "gallery" in writer.maintain(policy).tables_compacted
    assert all(path.exists() for path in replaced)
    writer.maintain(policy)
    assert all(path.exists() for path in replaced)
    time.sleep(2.1)
    assert writer.maintain(policy).files_vacuumed >= len(replaced)
    assert not any(path.exists() for path in replaced)
    assert sorted(Store.open(str(tmp_path)).gallery_rows()["item_id"].to_pylist()) == ["0", "1", "2", "3"]
    writer.release()


def test_a_row_that_is_refused_after_maintenance_commits_at_once(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    for shard_id in ("before", "after"):
        writer.record_landed([Shard(shard_id)])
        rows = make_rows(shard_id, [Item(shard_id, "cat")], np.ones((1, writer.store.dim)), writer.tree.head)
        bad = quarantine_rows([(shard_id, 1, "empty_image", "", b"")])
        writer.commit_ingest(IngestBatch([shard_id], rows, bad))
        writer.maintain(MaintenancePolicy(log_retention=timedelta(hours=1)))  # commits to the quarantine, too
    assert sorted(Store.open(str(tmp_path)).quarantine_rows()["shard_id"].to_pylist()) == ["after", "before"]
    assert len(list((tmp_path / "quarantine").glob("*.parquet"))) == 2  # no commit was tried in vain
    writer.release()
