"""Seam 12: what a stream writes is bounded. Logs of the tables are cut behind checkpoints, replaced and consumed files
go by policy; and whoever slept past it, reader, backup or writer, goes on or is told, and misses nothing."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from stream_odml.config.stream import StreamConfig
from stream_odml.pipeline.pushed import move_back, prune_pushed, without_images
from stream_odml.pipeline.tidying import Tidying
from stream_odml.storage.files import open_files
from stream_odml.storage.publish import CLAIMS
from stream_odml.store.backup import back_up
from stream_odml.store.errors import WriterFenced
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.table import Table
from stream_odml.store.tables import SCHEMAS
from stream_odml.store.writer import Writer
from tests.store.world import Item, Shard, commit_stage, ingest, new_root

MINUTE = timedelta(minutes=1)
CHECKPOINT_EVERY = 10
"""Commits from one checkpoint to the next, here: with them everything happens five times as early."""
POLICY = MaintenancePolicy(compact_files=8, retention=timedelta(0), log_retention=MINUTE)


@pytest.fixture(autouse=True)
def _early_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_odml.store.table.CHECKPOINT_EVERY", CHECKPOINT_EVERY)


def files_of(root: Path) -> int:
    return sum(len(names) for name in SCHEMAS for _, _, names in os.walk(root / name))


def let_pass(root: Path, hours: float = 2.0) -> None:
    """Delta tells the age of a commit by the time of its file."""
    past = time.time() - 3600 * hours
    for path in root.glob("*/_delta_log/*"):
        os.utime(path, (past, past))


def commit_many(writer: Writer, first: int, count: int) -> None:
    for number in range(first, first + count):
        writer.record_landed([Shard(f"shard-{number}")])


def test_files_stay_few_and_sleepers_miss_nothing(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    sleeper, follower = Store.open(str(tmp_path)), Store.open(str(tmp_path))
    counts = []
    for number in range(6):
        commit_many(writer, 12 * number, 12)
        follower.refresh()
        writer.maintain(POLICY)
        let_pass(tmp_path)
        counts.append(files_of(tmp_path))
    assert max(counts[1:]) <= counts[0] + 10  # of 72 commits, each of which is two files
    assert not (tmp_path / "ledger" / "_delta_log" / f"{20:020d}.json").exists()
    for reader in (sleeper, follower, Store.open(str(tmp_path))):
        reader.refresh()
        assert list(reader.ledger.shards) == [f"shard-{number}" for number in range(72)]
    commit_many(writer, 72, 1)
    for reader in (sleeper, follower):
        assert reader.refresh()
        assert "shard-72" in reader.ledger.shards
    copy = back_up(str(tmp_path), str(tmp_path.parent / "copy"))
    assert len(Store.open(copy.source).ledger.shards) == len(
        Store.open(str(tmp_path.parent / "copy")).ledger.shards
    )
    writer.release()


def test_a_log_is_cut_by_ordinary_commits_too(tmp_path: Path) -> None:
    """Once maintenance has told the tables how long: a stream that is never tidied again does not grow its logs."""
    writer = new_root(str(tmp_path))
    writer.maintain(POLICY)
    commit_many(writer, 0, CHECKPOINT_EVERY)
    let_pass(tmp_path)
    commit_many(writer, CHECKPOINT_EVERY, 2 * CHECKPOINT_EVERY)
    log = tmp_path / "ledger" / "_delta_log"
    assert len(list(log.glob("*.json"))) < 3 * CHECKPOINT_EVERY
    assert not (log / f"{3:020d}.json").exists()
    writer.release()


def test_a_root_of_an_earlier_release_gets_the_policy_and_keeps_its_own_settings(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    table = DeltaTable(str(tmp_path / "gallery"))
    table.alter.set_table_properties({"delta.appendOnly": "false"})
    follower = Store.open(str(tmp_path))
    for _ in range(2):
        writer.maintain(POLICY)
    versions = {name: DeltaTable(str(tmp_path / name)).version() for name in SCHEMAS}
    for name in SCHEMAS:
        reported = DeltaTable(str(tmp_path / name)).metadata()
        assert reported.configuration["delta.logRetentionDuration"] == "interval 60 seconds"
        assert reported.configuration["delta.deletedFileRetentionDuration"] == "interval 60 seconds"
        assert reported.configuration["delta.checkpointInterval"] == str(CHECKPOINT_EVERY)
        assert '"dim"' in reported.description
    assert DeltaTable(str(tmp_path / "gallery")).metadata().configuration["delta.appendOnly"] == "false"
    ingest(writer, "a", [Item("x", "cat")])
    follower.refresh()
    assert len(follower.gallery_rows()) == 1
    writer.maintain(POLICY)
    assert (
        DeltaTable(str(tmp_path / "versions")).version() <= versions["versions"] + 4
    )  # settings are set once
    writer.release()


def test_a_writer_that_slept_past_the_clean_up_commits_nothing(tmp_path: Path) -> None:
    zombie = new_root(str(tmp_path))
    stale = Table(open_files(str(tmp_path)), "ledger")
    stale.refresh()
    _ = stale.handle
    rows = zombie._fence.numbered("ledger", [{"kind": "landed", "subject": "ghost"}])
    successor = Writer.claim(str(tmp_path), "successor", takeover=True)
    for number in range(3):
        commit_many(successor, 12 * number, 12)
        successor.maintain(POLICY)
        let_pass(tmp_path)
    log = tmp_path / "ledger" / "_delta_log"
    before = sorted(path.name for path in log.glob("*.json"))
    with pytest.raises(DeltaError):
        stale.append(rows, zombie.epoch)
    assert sorted(path.name for path in log.glob("*.json")) == before
    with pytest.raises(WriterFenced):
        commit_many(zombie, 900, 1)
    assert "ghost" not in Store.open(str(tmp_path)).ledger.shards
    successor.release()


def pushed_stream(root: Path) -> Writer:
    """Three pushed shards: one learnt, one assigned to a refused task, one that waits; and a file of somebody else."""
    writer = new_root(str(root))
    (root / "push").mkdir()
    for name in ("push-1", "push-2", "push-3"):
        path = root / "push" / f"{name}.parquet"
        path.write_bytes(name.encode())
        (root / "push" / CLAIMS).mkdir(exist_ok=True)  # as an object store has one for each name
        (root / "push" / CLAIMS / path.name).write_bytes(b"hash")
        ingest(writer, f"{name}-id", [Item(f"{name}/0", name)])
    (root / "push" / "mine.parquet").write_bytes(b"mine")
    return writer


def test_pushed_files_go_when_they_are_learnt_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.store.world.Shard", _Pushed)
    writer = pushed_stream(tmp_path)
    root = writer.tree.head
    writer.close_task("task-0001", ["push-1-id"], "test")
    commit_stage(writer, "task-0001", None, seed=1)
    writer.close_task("task-0002", ["push-2-id"], "test")
    writer.refuse(writer.begin_attempt("task-0002"), "task-0002", "test")
    pushed = open_files(str(tmp_path / "push"))
    assert prune_pushed(writer.store, pushed, keep_s=3600) == 0
    assert without_images(writer.store, pushed, ["task-0001"]) == []
    assert prune_pushed(writer.store, pushed, keep_s=0) == 1
    assert sorted(p.name for p in (tmp_path / "push").glob("*.parquet")) == [
        "mine.parquet",
        "push-2.parquet",
        "push-3.parquet",
    ]
    assert sorted(p.name for p in (tmp_path / "push" / CLAIMS).iterdir()) == [
        "push-2.parquet",
        "push-3.parquet",
    ]
    assert prune_pushed(writer.store, pushed, keep_s=0) == 0
    assert without_images(writer.store, pushed, ["task-0001", "task-0002"]) == ["task-0001"]
    assert move_back(writer, pushed, root, relearn=True) == []
    assert "keep_pushed_h" in str(writer.ledger.tasks["task-0001"].skipped)
    (tmp_path / "push" / "push-1.parquet").write_bytes(b"again")
    assert prune_pushed(writer.store, pushed, keep_s=0) == 0  # no head has learnt it now
    writer.release()


class _Pushed(Shard):
    def __init__(self, shard_id: str) -> None:
        super().__init__(shard_id, uri=f"/root/push/{shard_id.removesuffix('-id')}.parquet")


def test_many_commits_of_few_rows_are_tidied_too(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    limits = {"maintain_every_rows": 10_000, "maintain_every_commits": 20, "retention_h": 0}
    config = StreamConfig.model_validate({"root": str(tmp_path), "store": limits})
    tidying = Tidying(writer, config, threading.RLock(), lambda error: pytest.fail(str(error)))
    assert not tidying._has_grown()
    commit_many(writer, 0, 60)
    assert tidying._has_grown()
    tidying.start()
    deadline = time.monotonic() + 120
    while len(DeltaTable(str(tmp_path / "ledger")).file_uris()) > 5 and time.monotonic() < deadline:
        time.sleep(0.1)
    tidying.stop()
    assert not tidying.problem
    assert not tidying._has_grown()
    assert len(DeltaTable(str(tmp_path / "ledger")).file_uris()) <= 5
    writer.release()


def test_copies_that_have_grown_old_are_pruned_while_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full spool lets nothing be written, and is emptied by pruning alone."""
    monkeypatch.setattr("stream_odml.pipeline.tidying.PRUNE_EVERY_S", 0.0)
    monkeypatch.setattr("stream_odml.pipeline.tidying.LOOK_S", 0.05)
    looked = threading.Event()

    def prune(store: object, keep_s: float) -> int:
        looked.set()
        return 0

    monkeypatch.setattr("stream_odml.pipeline.tidying.prune_copied", prune)
    writer = new_root(str(tmp_path))
    config = StreamConfig.model_validate({"root": str(tmp_path)})
    tidying = Tidying(writer, config, threading.RLock(), lambda error: pytest.fail(str(error)))
    assert not tidying._has_grown()
    tidying.start()
    assert looked.wait(60)
    tidying.stop()
    assert not tidying.problem
    writer.release()
