"""One writer: a second one is told so while the first lives, and a zombie cannot commit."""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stream_odml.storage.files import LocalFiles
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.errors import RootBusy, WriterFenced
from stream_odml.store.lease import LEASE, Lease, LeaseRecord, read_lease
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.writer import IngestBatch, Writer
from tests.store.world import DIM, Item, Shard, make_rows, new_root


def test_a_second_writer_stops_with_a_message_while_the_first_lives(tmp_path: Path) -> None:
    first = new_root(str(tmp_path), holder="first run")
    with pytest.raises(RootBusy, match="in use by 'first run'"):
        Writer.claim(str(tmp_path), "second run")
    first.record_landed([Shard("a")])
    first.release()
    second = Writer.claim(str(tmp_path), "second run")
    assert second.epoch == 2
    assert "a" in second.ledger.shards
    second.release()
    second.release()


@pytest.mark.parametrize("caught_up", [False, True])
@pytest.mark.parametrize(
    "operation",
    [
        lambda w, rows: w.record_landed([Shard("z")]),
        lambda w, rows: w.commit_ingest(IngestBatch(["a"], rows)),
        lambda w, rows: w.move_head(w.tree.head, "x"),
        lambda w, rows: w.forget("class", "c"),
        lambda w, rows: w.maintain(MaintenancePolicy(compact_files=2)),
        lambda w, rows: w.replace_artifact(w.tree.head, STUDENT, b"x", "a test"),
    ],
)
def test_a_zombie_cannot_commit(
    tmp_path: Path, operation: Callable[[Writer, object], None], caught_up: bool
) -> None:
    zombie = new_root(str(tmp_path))
    zombie.record_landed([Shard("a")])
    rows = make_rows("a", [Item("1", "c")], np.ones((1, DIM)), zombie.tree.head)
    successor = Writer.claim(str(tmp_path), "successor", takeover=True)
    if caught_up:
        zombie.store.refresh()
    before = Store.open(str(tmp_path))
    with pytest.raises(WriterFenced, match="replaced by writer 2"):
        operation(zombie, rows)
    after = Store.open(str(tmp_path))
    assert (after.ledger.seq, after.tree.seq, len(after.gallery_rows())) == (
        before.ledger.seq,
        before.tree.seq,
        0,
    )
    assert successor.commit_ingest(IngestBatch(["a"], rows))
    successor.release()
    zombie.release()


def test_a_zombie_caught_between_gallery_and_ledger_leaves_only_invisible_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    zombie = new_root(str(tmp_path))
    zombie.record_landed([Shard("a")])
    rows = make_rows("a", [Item("1", "c")], np.ones((1, DIM)), zombie.tree.head)
    successors: list[Writer] = []

    def asleep(name: str) -> None:
        if name == "ingest.after_gallery" and not successors:
            successors.append(Writer.claim(str(tmp_path), "successor", takeover=True))
            successors[0].commit_ingest(IngestBatch(["a"], rows))

    monkeypatch.setattr("stream_odml.store.writer.crash_point", asleep)
    with pytest.raises(WriterFenced):
        zombie.commit_ingest(IngestBatch(["a"], rows))
    store = Store.open(str(tmp_path))
    assert store.gallery_rows()["item_id"].to_pylist() == ["1"]
    successors[0].release()


def test_an_orphan_of_a_crash_is_removed_at_the_next_claim(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    rows = make_rows("a", [Item("1", "c")], np.ones((1, DIM)), writer.tree.head)

    orphan = rows.set_column(rows.schema.names.index("txn"), rows.schema.field("txn"), pa.array(["iabc.1"]))
    writer.store.tables["gallery"].append(orphan, writer.epoch)
    writer.release()
    assert sum(len(b) for b in Store.open(str(tmp_path)).blocks.values()) == 1
    Writer.claim(str(tmp_path), "next").release()
    assert not Store.open(str(tmp_path)).blocks


def test_two_claims_of_one_number_cannot_both_succeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store.create(str(tmp_path), DIM)
    rivals: list[Writer] = []

    def at_the_same_moment(name: str) -> None:
        if name == "claim.before" and not rivals:
            rivals.append(None)  # type: ignore[arg-type]
            rivals[0] = Writer.claim(str(tmp_path), "rival", takeover=True)

    monkeypatch.setattr("stream_odml.store.fence.crash_point", at_the_same_moment)
    with pytest.raises(RootBusy, match="at this very moment"):
        Writer.claim(str(tmp_path), "slower")
    assert rivals[0].record_landed([Shard("a")]) == ["a"]
    rivals[0].release()


def _rewrite(root: Path, **changes: object) -> None:
    record = read_lease(LocalFiles(str(root)))
    assert record is not None
    (root / LEASE).write_text(json.dumps(dataclasses.asdict(dataclasses.replace(record, **changes))))  # type: ignore[arg-type]


def _held(root: Path) -> Lease:
    lease = Lease.acquire(LocalFiles(str(root)), "holder", 30)
    lease._stop.set()  # hold still: the tests below age it by hand
    lease._thread.join()
    return lease


@pytest.mark.parametrize(
    ("changes", "busy"),
    [
        ({}, True),
        ({"wall": 0.0}, True),  # the wall clock jumped; the boot clock did not
        ({"boot_clock": -1e6}, False),  # stopped for longer than the lease
        ({"pid_start": "1"}, False),  # the id was given to another process
        ({"host": "elsewhere"}, True),
        ({"host": "elsewhere", "wall": 0.0}, False),
    ],
)
def test_when_a_lease_counts(tmp_path: Path, changes: dict[str, object], busy: bool) -> None:
    _held(tmp_path)
    _rewrite(tmp_path, **changes)
    if busy:
        with pytest.raises(RootBusy):
            Lease.acquire(LocalFiles(str(tmp_path)), "other", 30)
    else:
        Lease.acquire(LocalFiles(str(tmp_path)), "other", 30).release()


def test_a_dead_process_frees_its_root_at_once(tmp_path: Path) -> None:
    code = (
        "import os, sys; from stream_odml.storage.files import LocalFiles; from stream_odml.store.lease import Lease;"
        "Lease.acquire(LocalFiles(sys.argv[1]), 'doomed', 3600); os.kill(os.getpid(), 9)"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        check=False,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )
    assert isinstance(read_lease(LocalFiles(str(tmp_path))), LeaseRecord)
    Lease.acquire(LocalFiles(str(tmp_path)), "next", 30).release()
    assert read_lease(LocalFiles(str(tmp_path))) is None


def test_a_lease_renews_itself_and_notices_a_takeover(tmp_path: Path) -> None:
    files = LocalFiles(str(tmp_path))
    lease = Lease.acquire(files, "holder", 3.0)
    first = read_lease(files)
    assert first is not None
    deadline = time.monotonic() + 240
    while (second := read_lease(files)) is not None and second.boot_clock == first.boot_clock:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert second is not None
    assert second.boot_clock > first.boot_clock
    other = Lease.acquire(files, "other", 30, takeover=True)
    lease._thread.join(60)
    assert lease.lost
    lease.release()  # not its own any more: stays
    assert read_lease(files) is not None
    other.release()


def test_a_half_written_lease_does_not_lock_anybody_out(tmp_path: Path) -> None:
    (tmp_path / LEASE).write_text('{"token": "x"')
    Lease.acquire(LocalFiles(str(tmp_path)), "next", 30).release()
