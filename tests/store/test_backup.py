"""A copy that is taken while the root is written is the root of one instant, and a stream can go on from it."""

from __future__ import annotations

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.storage.files import LocalFiles
from stream_odml.store import backup as module
from stream_odml.store.backup import Backup, BackupFailed, back_up
from stream_odml.store.errors import NotAStreamRoot, UnfinishedBackup
from stream_odml.store.layout import MARK
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.select import select_rows
from stream_odml.store.store import Store
from stream_odml.store.table import Table
from stream_odml.store.writer import Writer
from tests.store.world import Item, commit_stage, ingest, make_rows, new_root

WAIT_S = 600
COPIES = 6
ITEMS = 3
HARSH = MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(0), keep_versions=2)
"""Files vanish the moment that nothing names them, as while something is being forgotten."""


def items(shard: str) -> list[Item]:
    return [Item(f"{shard}/{i}", f"class {i}") for i in range(ITEMS)]


def busy(root: str, stop: threading.Event, failed: list[BaseException]) -> None:
    """A stream in a hurry: ingest, stages whose rows replace those of tier 1, and harsh tidying, all the time."""
    try:
        writer = new_root(root)
        number = 0
        while not stop.is_set():
            shard = f"s{number}"
            vectors = ingest(writer, shard, items(shard), seed=number)
            if number % 3 == 2:
                task = writer.store.ledger.next_task_id
                writer.close_task(task, [f"s{number - 2}", f"s{number - 1}", shard], "test")
                version = writer.begin_attempt(task)
                rows = make_rows(shard, items(shard), vectors, version)
                commit_stage(writer, task, rows, seed=number)
                writer.maintain(HARSH)
            number += 1
            stop.wait(0.1)
        writer.release()
    except BaseException as error:
        failed.append(error)
        raise


def served(store: Store) -> set[str]:
    """Items that a search finds."""
    meta = store.metadata()
    picked = select_rows(meta, store.ledger, store.tree, store.tree.head).picked
    return set(meta.take(picked)["item_id"].to_pylist())


def patient_copy(source: str, target: Path) -> Backup:
    """A copy of a root that is tidied without pause may be refused, never half made: then it is asked for again."""
    for _ in range(20):
        try:
            return back_up(source, str(target))
        except BackupFailed:
            assert not (target / MARK).exists()
            shutil.rmtree(target)
    raise AssertionError("never copied")


def test_copies_of_a_running_root_are_whole(tmp_path: Path) -> None:
    source, stop, failed = str(tmp_path / "root"), threading.Event(), list[BaseException]()
    stream = threading.Thread(target=busy, args=(source, stop, failed))
    stream.start()
    try:
        _until(lambda: (tmp_path / "root" / "lease.json").exists() and _versions(source) >= 3)
        done = [patient_copy(source, tmp_path / f"copy-{i}") for i in range(COPIES)]
    finally:
        stop.set()
        stream.join()
    assert failed == []
    assert len({copy.tables["ledger"] for copy in done}) > 1, "the root stood still"
    for i, copy in enumerate(done):
        store = Store.open(str(tmp_path / f"copy-{i}"))
        assert store.tree.head == copy.head
        indexed = {s.shard_id for s in store.ledger.shards.values() if s.indexed_seq is not None}
        assert served(store) == {item.item_id for shard in indexed for item in items(shard)}
        assert len(GallerySnapshot.load(store)) == len(
            served(store)
        )  # every vector can be mapped to the head


def test_a_stream_goes_on_from_a_restored_copy(tmp_path: Path) -> None:
    source, copy, restored = (str(tmp_path / name) for name in ("root", "copy", "restored"))
    writer = new_root(source)
    ingest(writer, "a", items("a"))
    back_up(source, copy)
    ingest(writer, "b", items("b"))  # lost with the disk
    writer.release()
    back_up(copy, restored)
    again = Writer.claim(restored, "restored")
    assert served(again.store) == {item.item_id for item in items("a")}
    ingest(again, "b", items("b"))  # found in the inbox again
    assert served(Store.open(restored)) == {i.item_id for s in ("a", "b") for i in items(s)}
    again.release()


def test_what_is_not_state_stays_behind(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path / "root"))
    for name in ("cache/x", "inbox/x", "endpoints.json"):
        writer.store.files.write(name, b"x")
    writer.store.files.write("holdout/a.parquet", b"x")
    back_up(str(tmp_path / "root"), str(tmp_path / "copy"))
    kept = {path.name for path in (tmp_path / "copy").iterdir()}
    assert kept == {"artifacts", "gallery", "holdout", "ledger", "quarantine", "versions", MARK}
    assert json.loads((tmp_path / "copy" / MARK).read_text())["head"] == writer.tree.head
    writer.release()


def test_a_copy_never_goes_over_another(tmp_path: Path) -> None:
    new_root(str(tmp_path / "root")).release()
    back_up(str(tmp_path / "root"), str(tmp_path / "copy"))
    with pytest.raises(BackupFailed, match="empty folder"):
        back_up(str(tmp_path / "root"), str(tmp_path / "copy"))


@pytest.mark.parametrize("written", [0, 1, 9])
def test_a_copy_that_broke_off_is_no_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """A disk that is full after so many files: no table yet, some of them, all but the last."""
    root, copy = str(tmp_path / "root"), str(tmp_path / "copy")
    writer = new_root(root)
    ingest(writer, "a", items("a"))
    writer.release()
    upload, left = LocalFiles.upload, [written]

    def fill(self: LocalFiles, path: str, source: Path) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        upload(self, path, source)

    with monkeypatch.context() as patch:
        patch.setattr(LocalFiles, "upload", fill)
        with pytest.raises(BackupFailed, match="No space left"):
            back_up(root, copy)
    for use in (Store.open, lambda uri: Writer.claim(uri, "w"), lambda uri: Store.create(uri, 4)):
        with pytest.raises(UnfinishedBackup, match=r"copy is a backup that broke off .*delete it"):
            use(copy)
    for source, target in ((root, copy), (copy, str(tmp_path / "restored"))):
        with pytest.raises(UnfinishedBackup, match="make another one"):
            back_up(source, target)
    shutil.rmtree(copy)
    assert back_up(root, copy).head == Store.open(copy).tree.head


def test_a_root_is_asked_for_its_tables_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their client lets other threads go on while a store hangs, and tells why a key is refused."""
    root = str(tmp_path / "root")
    new_root(root).release()
    asked: list[str] = []
    read, opened = LocalFiles.read, Table.__init__

    def reading(self: LocalFiles, path: str, limit: int | None = None) -> bytes:
        asked.append(path)
        return read(self, path, limit)

    def opening(self: Table, *arguments: Any) -> None:
        asked.append("a table")
        opened(self, *arguments)

    monkeypatch.setattr(LocalFiles, "read", reading)
    monkeypatch.setattr(Table, "__init__", opening)
    Store.open(root)
    assert asked[0] == "a table"
    assert MARK in asked


@pytest.mark.parametrize("name", ["file", "file/below", "loop", "nothing"])
def test_what_is_no_root_is_refused_as_such(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(NotAStreamRoot):
        Store.open(str(tmp_path / name))


def test_a_copy_goes_into_an_empty_folder_that_can_be_written(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    new_root(root).release()
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/a.png").write_bytes(b"x")
    with pytest.raises(BackupFailed, match=r"photos is not empty: a\.png"):
        back_up(root, str(tmp_path / "photos"))
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["a.png"]
    (tmp_path / "disk/lost+found").mkdir(parents=True)  # as a new disk has it
    assert back_up(root, str(tmp_path / "disk")).head
    with pytest.raises(BackupFailed, match=r"/proc/nowhere cannot be written: .*name another folder"):
        back_up(root, "/proc/nowhere")


def test_a_file_that_vanishes_midway_is_no_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables are pinned, then everything that was pinned is compacted away: the copy begins anew."""
    writer = new_root(str(tmp_path / "root"))
    for shard in ("a", "b", "c"):
        ingest(writer, shard, items(shard))
    pin, pinned = module._pinned, []

    def pin_then_tidy(store: Store) -> dict[str, int]:
        pinned.append(pin(store))
        if len(pinned) == 1:
            writer.maintain(HARSH)
        return pinned[-1]

    monkeypatch.setattr(module, "_pinned", pin_then_tidy)
    back_up(str(tmp_path / "root"), str(tmp_path / "copy"))
    assert len(pinned) == 2
    assert len(served(Store.open(str(tmp_path / "copy")))) == 3 * ITEMS
    writer.release()


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, "the stream never came so far"
        time.sleep(0.05)


def _versions(root: str) -> int:
    try:
        return len(Store.open(root).tree.versions)
    except (ValueError, OSError):
        return 0
