"""Seam 38: what is said to be deleted is deleted, whatever was killed or dropped on the way, and nothing that somebody
still needs goes with it."""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.config.stream import StreamConfig
from stream_odml.pipeline.tidying import Tidying
from stream_odml.store import maintenance
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.writer import Writer
from tests.store.world import Item, commit_stage, ingest, new_root

ERASE = MaintenancePolicy(retention=timedelta(0))


class Killed(BaseException):
    """Ends maintenance where a SIGKILL would."""


def killed_in_maintenance(monkeypatch: pytest.MonkeyPatch, writer: Writer, at: str) -> Writer:
    """Return the successor of a writer that erases and dies at a crash point."""

    def die(point: str) -> None:
        if point == at:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr("stream_odml.store.maintenance.crash_point", die)
        with pytest.raises(Killed):
            writer.maintain(ERASE)
    return Writer.claim(writer.store.uri, "successor", takeover=True)


def stored_items(root: Path) -> set[str]:
    """Every item that any file of the gallery's folder has a row of."""
    files = (root / "gallery").glob("*.parquet")
    return {item for path in files for item in pq.read_table(path)["item_id"].to_pylist()}


def test_an_erasure_that_is_killed_is_ended_by_the_next_writer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("x", "cat"), Item("y", "dog")])
    writer.forget("class", "cat")
    successor = killed_in_maintenance(monkeypatch, writer, "maintain.after_purge")
    assert stored_items(tmp_path) == {"x", "y"}  # the rows are in no version of the table, but on the disk
    kept = MaintenancePolicy(retention=timedelta(hours=1))
    assert successor.maintain(kept).files_vacuumed == 0  # whoever reads the older version still can
    assert stored_items(tmp_path) == {"x", "y"}
    assert successor.maintain(ERASE).files_vacuumed == 1
    assert stored_items(tmp_path) == {"y"}
    assert successor.maintain(ERASE).files_vacuumed == 0
    successor.release()


def test_an_idle_stream_deletes_what_came_to_be_old_after_its_erasure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A part that was never committed is too young for the erasing round, and nothing else happens afterwards."""
    monkeypatch.setattr("stream_odml.pipeline.tidying.LOOK_S", 0.01)
    monkeypatch.setattr("stream_odml.pipeline.tidying.ERASE_AFTER_S", 0.0)
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("x", "cat"), Item("y", "dog")])
    config = StreamConfig.model_validate({"root": str(tmp_path)})
    tidying = Tidying(writer, config, threading.RLock(), lambda error: pytest.fail(str(error)))
    part = tmp_path / "gallery" / "part-00000-never-committed.snappy.parquet"
    pq.write_table(writer.store.gallery_rows(), part)
    writer.forget("class", "cat")
    tidying.erase_soon()
    tidying.start()
    wait_for(lambda: tidying._sweep_due < math.inf)  # set when the erasing round has ended
    assert stored_items(tmp_path) == {"x", "y"}
    assert part.exists()
    an_hour_later = time.monotonic() + 3600 + 61
    assert tidying._sweep_due <= an_hour_later
    long_ago = time.time() - 2 * 3600
    os.utime(part, (long_ago, long_ago))
    tidying._sweep_due = time.monotonic()
    wait_for(lambda: not part.exists())
    wait_for(lambda: tidying._sweep_due == math.inf)  # nothing happened since: no round is due any more
    tidying.stop()
    assert (tidying.problem, stored_items(tmp_path)) == ("", {"y"})
    writer.release()


def wait_for(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.01)


NOW = MaintenancePolicy(retention=timedelta(0), orphan_age=timedelta(0))


def first_of_three_learnt(root: Path) -> tuple[Writer, str, str]:
    """A root of three closed tasks; its writer, the version before any was learnt, and that of the first."""
    writer = new_root(str(root))
    before = writer.tree.head
    for number, name in enumerate("abc", 1):
        ingest(writer, name, [Item(name, "cat")], seed=number)
        writer.close_task(f"task-000{number}", [name], "test")
    return writer, before, commit_stage(writer, "task-0001", None, seed=1)


def begun(writer: Writer, task: str) -> tuple[str, Path]:
    """Begin to learn a task, up to the rows that are to be committed; (version id, their file)."""
    version_id = writer.begin_attempt(task)
    path = f"artifacts/{version_id}/rows-0.parquet"
    writer.store.files.write(path, b"rows with ids, classes and vectors")
    return version_id, Path(writer.store.uri) / path


def test_an_attempt_that_was_dropped_leaves_nothing_and_may_come_back(tmp_path: Path) -> None:
    writer, root, learnt = first_of_three_learnt(tmp_path)
    version_id, rows = begun(writer, "task-0002")
    writer.maintain(NOW)
    assert rows.exists()  # under way
    writer.move_head(root, "rollback")
    writer.maintain(MaintenancePolicy(retention=timedelta(0)))
    assert rows.exists()  # its trainer may not have heard of it yet
    assert writer.maintain(NOW).files_deleted == 1
    assert not rows.parent.exists()
    writer.move_head(learnt, "forward")
    assert commit_stage(writer, "task-0002", None, seed=2) == version_id  # taken up again, written again
    _, rows = begun(writer, "task-0003")
    writer.skip_task("task-0003", "test")
    writer.maintain(NOW)
    assert not rows.exists()
    assert writer.tree.head == version_id
    assert all((tmp_path / path).exists() for path in writer.tree.files)
    writer.release()


def test_an_attempt_that_comes_back_while_files_are_deleted_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Maintenance judges an attempt twice: at first without the lock, and under it when its files go."""
    writer, root, learnt = first_of_three_learnt(tmp_path)
    _, rows = begun(writer, "task-0002")
    writer.move_head(root, "rollback")
    drop = maintenance._drop_attempt

    def drop_late(*args: Any) -> int:
        writer.move_head(learnt, "forward")
        return drop(*args)

    monkeypatch.setattr(maintenance, "_drop_attempt", drop_late)
    assert writer.maintain(NOW).files_deleted == 0
    assert rows.exists()
    writer.release()


def test_a_relabelled_item_is_erased_with_the_picture_of_its_earlier_class(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a: old, then new. b: old. c: old, new, then another. d: old, then new, and landed again after the request."""
    writer = new_root(str(tmp_path))
    landings = {
        "s1": {"a": "old", "b": "old", "c": "old", "d": "old"},
        "s2": {"a": "new", "c": "new", "d": "new"},
        "s3": {"c": "another"},
        "s4": {"d": "old"},
    }
    pictures = {"s1": ["a", "b", "c", "d"], "s4": ["d"]}  # labels, as s2 and s3 are made of, have none
    for seed, (shard, items) in enumerate(landings.items()):
        if shard == "s4":
            writer.forget("class", "new")
        ingest(writer, shard, [Item(*item) for item in items.items()], seed=seed)
    for folder in ("thumbnails", "holdout"):
        (tmp_path / folder).mkdir()
        for shard, names in pictures.items():
            classes = [landings[shard][name] for name in names]
            columns = {"item_id": names, "class_name": classes, "image": [b"pixels"] * len(names)}
            pq.write_table(pa.table(columns), tmp_path / folder / f"{shard}.parquet")
    successor = killed_in_maintenance(monkeypatch, writer, "maintain.after_purge")
    successor.maintain(ERASE)
    for folder in ("thumbnails", "holdout"):
        left = {s: pq.read_table(tmp_path / folder / f"{s}.parquet")["item_id"].to_pylist() for s in pictures}
        assert left == {"s1": ["b", "c"], "s4": ["d"]}
    assert sorted(successor.store.gallery_rows()["item_id"].to_pylist()) == ["b", "c", "d"]
    successor.release()


def test_what_is_requested_while_pictures_are_rewritten_waits_for_the_next_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Were its rows gone before its pictures, nothing would tell whose these are."""
    writer = new_root(str(tmp_path))
    ingest(writer, "s1", [Item("a", "old"), Item("b", "old")])
    ingest(writer, "s2", [Item("a", "new")], seed=1)
    writer.forget("class", "another")
    picture = tmp_path / "thumbnails" / "s1.parquet"
    picture.parent.mkdir()
    pq.write_table(pa.table({"item_id": ["a", "b"], "class_name": ["old", "old"]}), picture)

    def request(point: str) -> None:
        if point == "maintain.after_files":
            writer.forget("class", "new")

    monkeypatch.setattr(maintenance, "crash_point", request)
    writer.maintain(ERASE)
    writer.maintain(ERASE)
    assert pq.read_table(picture)["item_id"].to_pylist() == ["b"]
    assert writer.store.gallery_rows()["item_id"].to_pylist() == ["b"]
    writer.release()
