"""Readers: cheap when nothing came, right after any compaction, plain about what they cannot read."""

import json
import time
from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import DeltaTable

from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.storage.files import Files
from stream_odml.store.blocks import Blocks
from stream_odml.store.errors import NotAStreamRoot, NoVersionYet, SchemaTooNew
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.table import Table
from stream_odml.store.tables import SCHEMAS, with_column
from stream_odml.store.writer import Writer
from tests.store.world import (
    DIM,
    Item,
    Shard,
    commit_stage,
    drift_pair,
    ingest,
    make_rows,
    new_root,
)

TIDY = MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(0))


def test_a_reader_follows_the_writer(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    reader = Store.open(str(tmp_path))
    assert not reader.refresh()
    ingest(writer, "a", [Item("1", "c")])
    assert reader.refresh()
    assert (reader.ledger, reader.tree) == (writer.ledger, writer.tree)
    assert reader.gallery_rows()["item_id"].to_pylist() == ["1"]
    assert not reader.refresh()
    writer.release()


def test_a_poll_that_finds_nothing_costs_little(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    reader = Store.open(str(tmp_path))
    best = min(_timed(reader) for _ in range(50))
    assert best < 0.002, f"{best * 1e6:.0f} µs"  # measured: 50 µs
    writer.release()


def _timed(reader: Store) -> float:
    start = time.process_time()
    reader.refresh()
    return time.process_time() - start


def test_compaction_and_vacuum_behind_a_readers_back(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    for i in range(4):
        ingest(writer, f"s{i}", [Item(f"{i}", "c")], seed=i)
    asleep, awake = Store.open(str(tmp_path)), Store.open(str(tmp_path))
    snapshot = GallerySnapshot.load(awake)
    report = writer.maintain(TIDY)
    assert {"ledger", "gallery"} <= set(report.tables_compacted)
    assert report.files_vacuumed > 0
    with pytest.raises(FileNotFoundError):
        asleep.gallery_rows()  # it did not look; its files are gone
    assert len(GallerySnapshot.load(asleep)) == 4  # the snapshot looks again by itself
    awake.refresh()
    assert (awake.ledger, awake.tree) == (writer.ledger, writer.tree)
    assert len(snapshot.refreshed(awake)) == 4
    ingest(writer, "late", [Item("late", "c")])
    for reader in (asleep, awake):
        reader.refresh()
        assert sorted(reader.gallery_rows()["item_id"].to_pylist()) == ["0", "1", "2", "3", "late"]
    writer.release()


def test_the_same_root_through_an_object_stores_client(tmp_path: Path) -> None:
    uri = f"file://{tmp_path}/root"
    writer = new_root(uri)
    ingest(writer, "a", [Item("1", "c"), Item("2", "d")])
    writer.forget("class", "d")
    writer.maintain(TIDY)
    reader = Store.open(str(tmp_path / "root"))
    assert reader.artifact(reader.tree.head, "student.safetensors") == b"initial"
    assert reader.gallery_rows()["item_id"].to_pylist() == ["1"]
    assert len(GallerySnapshot.load(Store.open(uri))) == 1
    writer.release()
    assert not (tmp_path / "root" / "lease.json").exists()


def test_a_reader_that_comes_between_a_stages_rows_and_its_commit(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("1", "c"), Item("2", "d")])
    rows = make_rows("a", [Item("1", "c")], np.ones((1, DIM)), "v0001-not-committed")
    writer.store.tables["gallery"].append(with_column(rows, "txn", "v0001-not-committed.1"), writer.epoch)
    assert len(GallerySnapshot.load(Store.open(str(tmp_path)))) == 2
    writer.release()


def test_files_taken_in_together_keep_their_order_and_their_rows() -> None:
    rng = np.random.default_rng(0)
    blocks, naive = Blocks(), dict[str, list[str]]()
    for turn in range(300):
        gone = {path for path in naive if rng.random() < 0.02}
        came = [(f"{turn}-{i}", [f"{turn}-{i}-{j}" for j in range(rng.integers(4))]) for i in range(turn % 3)]
        blocks = blocks.changed(gone, [(path, one_column(names)) for path, names in came])
        naive = {path: names for path, names in naive.items() if path not in gone} | dict(came)
        files = {path: table["class_name"].to_pylist() for path, table in blocks.files().items()}
        assert list(files.items()) == list(naive.items())
        rows = [name for table in blocks.tables() for name in table["class_name"].to_pylist()]
        assert rows == [name for names in naive.values() for name in names]
    assert len(blocks.tables()) < len(naive) / 4


def one_column(names: list[str]) -> pa.Table:
    return pa.table({"class_name": pa.array(names, pa.string()).dictionary_encode()})


def test_drift_maps_of_an_object_store_are_fetched_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"file://{tmp_path}/root"
    writer = new_root(uri)
    versions = [writer.tree.head]
    for turn in range(3):
        ingest(writer, f"s{turn}", [Item(f"{turn}", "c")])
        task = writer.ledger.next_task_id
        writer.close_task(task, [f"s{turn}"], "test")
        versions.append(commit_stage(writer, task, None, seed=turn))
    reader, fetched = Store.open(uri), list[str]()
    artifact = reader.artifact

    def counted(version: str, name: str) -> bytes:
        fetched.append(version)
        return artifact(version, name)

    monkeypatch.setattr(reader, "artifact", counted)
    vector = np.ones((1, DIM), np.float32)
    expected = vector
    for turn in range(3):
        expected = drift_pair(turn)[0].apply(expected)
    for _ in range(2):
        maps = dict(reader.mapper.into(reader.tree, versions[:1], versions[-1]))
        np.testing.assert_allclose(maps[versions[0]].apply(vector), expected, atol=1e-5)
    assert sorted(fetched) == sorted(versions[1:])
    writer.release()


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_a_table_of_a_newer_release_is_not_guessed_at(tmp_path: Path, name: str) -> None:
    Store.create(str(tmp_path), DIM)
    table = DeltaTable(str(tmp_path / name))
    table.alter.set_table_description(json.dumps({"schema_version": 99, "dim": DIM}))
    too_new = pytest.raises(SchemaTooNew, match="schema version 99, this release reads up to 2; upgrade")
    with too_new:
        Store.open(str(tmp_path)).table(name)
    with too_new:
        Writer.claim(str(tmp_path), "test")


def test_a_reader_opens_the_quarantine_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []

    class Counted(Table):
        def __init__(self, files: Files, name: str, storage_options: dict[str, str] | None = None) -> None:
            opened.append(name)
            super().__init__(files, name, storage_options)

    new_root(str(tmp_path)).release()
    monkeypatch.setattr("stream_odml.store.store.Table", Counted)
    store = Store.open(str(tmp_path))
    assert (store.refused(), store.refresh()) == ({}, False)
    assert sorted(opened) == ["gallery", "ledger", "versions"]
    assert len(store.quarantine_rows()) == 0
    assert sorted(opened) == ["gallery", "ledger", "quarantine", "versions"]


def test_what_is_no_stream_root_is_reported(tmp_path: Path) -> None:
    with pytest.raises(NotAStreamRoot, match="no table 'ledger'"):
        Store.open(str(tmp_path / "nothing"))
    DeltaTable.create(str(tmp_path / "ledger"), schema=SCHEMAS["ledger"])
    with pytest.raises(NotAStreamRoot, match="not one of a stream root"):
        Store.open(str(tmp_path))


def test_creating_again_opens_and_another_dimension_is_refused(tmp_path: Path) -> None:
    Store.create(str(tmp_path), DIM)
    store = Store.create(str(tmp_path), DIM)
    with pytest.raises(NoVersionYet):
        GallerySnapshot.load(store)
    with pytest.raises(ValueError, match="dimension 6, asked for embeddings of dimension 7"):
        Store.create(str(tmp_path), 7)


def test_every_landing_detail_is_remembered(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    writer.record_landed([Shard("a", name="omniglot", size_bytes=12)])
    shard = Store.open(str(tmp_path)).ledger.shards["a"]
    assert (shard.name, shard.size_bytes, shard.format, shard.state) == ("omniglot", 12, "parquet", "landed")
    writer.release()
