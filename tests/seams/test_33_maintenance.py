"""Seam 33: maintenance holds up nothing. While a store merges and deletes for minutes, status answers within a second
and rollbacks, stage commits and tier 1 go on; and what it does beside them loses, doubles and revives no row."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from deltalake.table import TableOptimizer

from stream_odml.config.stream import StreamConfig
from stream_odml.pipeline.tidying import Tidying
from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.service.bundle import Bundle
from stream_odml.service.metrics import ServiceMetrics
from stream_odml.service.puller import Puller
from stream_odml.store.errors import WriterFenced
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.purge import orphaned_txns
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.seams.test_07_status import driver_over
from tests.service.tiny_stream import TinyStream
from tests.store.world import Item, commit_stage, ingest, new_root

WAIT_S = 600.0
ALWAYS = MaintenancePolicy(compact_files=2, retention=timedelta(0))


@dataclass
class SlowMerges:
    """Merges that do not commit before they are let, as on an object store far away."""

    began: threading.Event = field(default_factory=threading.Event)
    may_end: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def slow_store(monkeypatch: pytest.MonkeyPatch) -> SlowMerges:
    slow, compact = SlowMerges(), TableOptimizer.compact

    def slowly(self: TableOptimizer, *args: Any, **kwargs: Any) -> Any:
        slow.began.set()
        assert slow.may_end.wait(WAIT_S), "what must not wait for a merge waited for it"
        return compact(self, *args, **kwargs)

    monkeypatch.setattr(TableOptimizer, "compact", slowly)
    return slow


@contextmanager
def beside(work: Any) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield thread
    thread.join(timeout=600)
    assert not thread.is_alive()


def test_status_rollback_and_commits_do_not_wait_for_a_slow_merge(
    tmp_path: Path, slow_store: SlowMerges
) -> None:
    stream = TinyStream(tmp_path)
    writer = stream.writer
    first = writer.tree.head
    for number in range(3):
        ingest_one(writer, f"s{number}")
    writer.close_task("task-0001", ["s0"], "test")
    driver = driver_over(stream, progress=None)  # type: ignore[arg-type]
    config = StreamConfig(root=str(tmp_path), store={"retention_h": 0})
    tidying = Tidying(writer, config, driver._lock, lambda error: None)
    policy = MaintenancePolicy(compact_files=2)
    tidying._writer = _WithPolicy(writer, policy)  # type: ignore[assignment]
    with beside(lambda: tidying.tidy(erase=False)) as thread:
        assert slow_store.began.wait(WAIT_S)
        assert driver.status()["shards"]["indexed"] == 3
        with driver._lock:
            ingest_one(writer, "s3")
            second = commit_stage(writer, "task-0001", None, seed=1)
            writer.move_head(first, "rollback")
        assert thread.is_alive()  # or nothing was shown
        slow_store.may_end.set()
    assert second in writer.tree.versions
    assert len(GallerySnapshot.load(Store.open(writer.store.uri))) == 8  # four shards of two
    stream.close()


class _WithPolicy:
    """A writer that merges whatever it is told."""

    def __init__(self, writer: Writer, policy: MaintenancePolicy) -> None:
        self._writer, self._policy = writer, policy

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def maintain(self, policy: MaintenancePolicy, covered: int | None) -> Any:
        return self._writer.maintain(self._policy, covered)


def ingest_one(writer: Writer, shard: str) -> None:
    ingest(writer, shard, [Item(f"{shard}/{i}", f"class {i}") for i in range(2)], seed=hash(shard) % 1000)


def test_status_tells_what_it_knows_while_a_commit_takes_long(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    driver = driver_over(stream, progress=None)  # type: ignore[arg-type]
    before = driver.status()
    held, release = threading.Event(), threading.Event()

    def commit() -> None:
        with driver._lock:
            held.set()
            assert release.wait(WAIT_S)

    with beside(commit):
        assert held.wait(WAIT_S)
        assert driver.status() == before
        assert not release.is_set()
        release.set()
    stream.close()


def test_commits_and_maintenance_at_once_lose_double_and_revive_nothing(tmp_path: Path) -> None:
    """An oracle that is only a set of names, and a second store that follows all the while."""
    writer = new_root(str(tmp_path))
    follower = Store.open(str(tmp_path))
    failed: list[BaseException] = []
    stop = threading.Event()

    def tidy() -> None:
        try:
            while not stop.is_set():
                writer.maintain(ALWAYS)
        except BaseException as error:
            failed.append(error)

    alive: dict[str, str] = {}
    with beside(tidy):
        for number in range(40):
            name = f"shard-{number}"
            items = [Item(f"{name}/{i}", f"class {number % 7}") for i in range(3)]
            items.append(Item(f"again {number % 5}", f"class {number % 7}"))  # replaces the one of before
            ingest(writer, name, items, seed=number)
            alive |= {item.item_id: item.class_name for item in items}
            if number % 10 == 9:
                gone = f"class {number % 7}"
                writer.forget("class", gone)
                alive = {item: name for item, name in alive.items() if name != gone}
            follower.refresh()
            assert names(follower) == alive
        stop.set()
    assert not failed
    assert names(Store.open(str(tmp_path))) == names(writer.store) == alive
    writer.maintain(ALWAYS)
    rows = Store.open(str(tmp_path)).gallery_rows(vectors=False)
    assert sorted(rows["item_id"].to_pylist()) == sorted(alive)
    writer.release()


def names(store: Store) -> dict[str, str]:
    snapshot = GallerySnapshot.load(store)
    hits = [snapshot.item(int(row)) for row in snapshot.rows()]
    assert len({hit.item_id for hit in hits}) == len(hits)
    return {hit.item_id: hit.class_name for hit in hits}


def test_a_transaction_under_way_is_no_orphan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Maintenance that looks between the gallery's commit and the ledger's must leave the rows alone."""
    writer = new_root(str(tmp_path))
    found: list[Any] = []

    looked = threading.Event()

    def look(store: Store, epoch: int) -> Any:
        found.append(orphaned_txns(store, epoch))
        looked.set()
        return found[-1]

    monkeypatch.setattr("stream_odml.store.maintenance.orphaned_txns", look)
    append = writer._fence.append
    maintenance: list[threading.Thread] = []

    def append_and_look(table: str, rows: Any) -> None:
        append(table, rows)
        if table == "gallery":
            maintenance.append(threading.Thread(target=writer.maintain, args=(ALWAYS,)))
            maintenance[0].start()
            assert looked.wait(WAIT_S)

    monkeypatch.setattr(writer._fence, "append", append_and_look)
    ingest(writer, "a", [Item("x", "cat")])
    maintenance[0].join(WAIT_S)
    assert any(found[0].values())  # it did look in between
    assert names(Store.open(str(tmp_path))) == {"x": "cat"}
    writer.release()


def test_files_that_are_being_written_outlive_an_erasure(tmp_path: Path) -> None:
    """A data file is there before its commit: an erasure's vacuum must not take it for what a crash left."""
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("x", "cat"), Item("y", "dog")])
    writing = tmp_path / "gallery" / "part-00000-under-way.snappy.parquet"
    writing.write_bytes(b"PAR1")
    writer.forget("class", "cat")
    assert writer.maintain(MaintenancePolicy(retention=timedelta(0))).rows_purged == 1
    assert writing.exists()
    writer.release()


def test_maintenance_of_a_fenced_writer_ends_and_keeps_what_banks_need(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("x", "cat")])
    covered = writer.forget("class", "cat")
    ingest(writer, "b", [Item("y", "dog")], seed=1)
    writer.forget("class", "dog")
    assert writer.maintain(ALWAYS, covered).rows_purged == 1  # the dog's vector is in a bank still
    stored = Store.open(str(tmp_path)).gallery_rows(vectors=False)
    assert stored["item_id"].to_pylist() == ["y"]
    successor = Writer.claim(str(tmp_path), "successor", takeover=True)
    before = DeltaTable(str(tmp_path / "gallery")).version()
    with pytest.raises(WriterFenced):
        writer.maintain(ALWAYS)
    assert DeltaTable(str(tmp_path / "gallery")).version() == before
    successor.release()


def test_the_class_list_is_made_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("x", "cat"), Item("y", "dog"), Item("z", "dog")])
    made: list[int] = []
    monkeypatch.setattr("stream_odml.service.bundle.class_rows", lambda snapshot: made.append(1))
    store = Store.open(str(tmp_path))
    bundle = Bundle(GallerySnapshot.load(store), embedder=None)  # type: ignore[arg-type]
    puller = Puller(lambda: store, SearchSettings(), 1.0, ServiceMetrics())
    for number in range(3):
        puller._swap(bundle, 0.0)
        assert (bundle.class_count, made) == (2 + number, [])
        ingest(writer, f"b{number}", [Item(f"b{number}", f"bird {number}")], seed=number)
        store.refresh()
        bundle = Bundle(bundle.snapshot.refreshed(store), embedder=None)  # type: ignore[arg-type]
    writer.forget("class", "dog")
    store.refresh()
    bundle = Bundle(bundle.snapshot.refreshed(store), embedder=None)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert bundle.class_count == len(bundle.classes) == 4
    writer.release()
