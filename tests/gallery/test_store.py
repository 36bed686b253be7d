"""Readers: cheap when nothing came, right after any compaction, plain about what they cannot read."""

import json
import time
from datetime import timedelta
from pathlib import Path

import pytest
from deltalake import DeltaTable

from stream_odml.gallery.errors import NotAStreamRoot, NoVersionYet, SchemaTooNew
from stream_odml.gallery.maintenance import MaintenancePolicy
from stream_odml.gallery.snapshot import GallerySnapshot
from stream_odml.gallery.store import Store
from stream_odml.gallery.tables import SCHEMAS
from tests.gallery.world import DIM, Item, Shard, ingest, new_root

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
    start = time.perf_counter()
    reader.refresh()
    return time.perf_counter() - start


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


@pytest.mark.parametrize("name", list(SCHEMAS))
def test_a_table_of_a_newer_release_is_not_guessed_at(tmp_path: Path, name: str) -> None:
    Store.create(str(tmp_path), DIM)
    table = DeltaTable(str(tmp_path / name))
    table.alter.set_table_description(json.dumps({"schema_version": 99, "dim": DIM}))
    with pytest.raises(SchemaTooNew, match="schema version 99, this release reads up to 1; upgrade"):
        Store.open(str(tmp_path))


def test_what_is_no_stream_root_is_told(tmp_path: Path) -> None:
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
    with pytest.raises(ValueError, match="dimension 6, asked for 7"):
        Store.create(str(tmp_path), 7)


def test_every_landing_detail_is_remembered(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    writer.record_landed([Shard("a", name="omniglot", size_bytes=12)])
    shard = Store.open(str(tmp_path)).ledger.shards["a"]
    assert (shard.name, shard.size_bytes, shard.format, shard.state) == ("omniglot", 12, "parquet", "landed")
    writer.release()
