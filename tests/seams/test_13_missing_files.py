"""Seam 13: a data file that vanishes is named, with its table and a remedy; when it comes back every reader has it
within seconds, none of its rows twice, and none of the others lost meanwhile."""

from __future__ import annotations

import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pyarrow.compute as pc
import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.cli.stream_root import root_status
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.errors import DataFileMissing
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.store.world import Item, ingest, new_root

TABLES = ["gallery", "ledger", "versions"]


def newest(root: Path, table: str) -> Path:
    return max((root / table).glob("*.parquet"), key=lambda path: path.stat().st_mtime_ns)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("x", "cat"), Item("y", "cat")])
    return writer


def items(store: Store) -> list[str]:
    rows = [row for _, part in store.scan(["item_id"], pc.field("row") >= 0) for row in part.to_pylist()]
    return sorted(row["item_id"] for row in rows)


@pytest.mark.parametrize("keeps", [True, False], ids=["keeps the gallery", "reads it when asked"])
@pytest.mark.parametrize("table", TABLES)
def test_who_follows_has_it_when_it_is_back(table: str, keeps: bool, writer: Writer, tmp_path: Path) -> None:
    follower = Store.open(str(tmp_path), keep_gallery=keeps)
    before = items(follower)
    ingest(writer, "b", [Item("z", "dog")], seed=1)
    ref = writer.replace_artifact(writer.tree.head, STUDENT, b"another", "a test")
    lost = newest(tmp_path, table)
    away = tmp_path / "away"
    lost.rename(away)
    for _ in range(3):  # a poll each second, say
        if keeps or table != "gallery":
            with pytest.raises(DataFileMissing, match=f"table '{table}' .*{lost.name}.*put the file back"):
                follower.refresh()
            assert [item for item in items(follower) if item in before] == before  # what it held, it holds
        else:
            follower.refresh()
            with pytest.raises(DataFileMissing, match=lost.name):
                follower.again(lambda: items(follower))
    away.rename(lost)
    follower.refresh()
    assert items(follower) == ["x", "y", "z"]
    assert len(GallerySnapshot.load(follower)) == 3
    assert sorted(follower.gallery_rows()["item_id"].to_pylist()) == ["x", "y", "z"]
    assert follower.tree.get(follower.tree.head).artifacts[STUDENT] == ref
    assert follower.ledger.shards["b"].state == "indexed"
    ingest(writer, "c", [Item("w", "dog")], seed=2)
    follower.refresh()
    assert items(follower) == ["w", "x", "y", "z"]
    writer.release()


@pytest.mark.parametrize("table", TABLES)
def test_the_writer_goes_on_when_it_is_back(table: str, writer: Writer, tmp_path: Path) -> None:
    lost, away = newest(tmp_path, table), tmp_path / "away"
    lost.rename(away)
    policy = MaintenancePolicy(compact_files=2, retention=timedelta(0))
    with pytest.raises((OSError, ValueError, RuntimeError), match=lost.name):
        writer.maintain(policy)
    away.rename(lost)
    ingest(writer, "b", [Item("z", "dog")], seed=1)
    writer.maintain(policy)
    assert items(writer.store) == ["x", "y", "z"]
    writer.release()


def test_other_failures_of_a_read_lose_and_double_nothing(
    writer: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unreachable disk in the middle of a refresh, at every place in turn."""
    follower = Store.open(str(tmp_path))
    ingest(writer, "b", [Item("z", "dog")], seed=1)
    read: Callable[..., object] = type(follower.tables["gallery"]).read
    for good in range(6):
        reads = 0

        def failing(*args: object, good: int = good, **kwargs: object) -> object:
            nonlocal reads
            reads += 1
            if reads > good:
                raise OSError("the disk is away")
            return read(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr("stream_odml.store.table.Table.read", failing)
            try:
                follower.refresh()
            except OSError:
                continue
            break
    follower.refresh()
    assert items(follower) == ["x", "y", "z"]
    assert len(follower.metadata()) == 3
    writer.release()


def test_status_says_which_file_of_which_table_and_what_to_do(writer: Writer, tmp_path: Path) -> None:
    writer.release()
    assert "missing_files" not in root_status(str(tmp_path))
    lost = newest(tmp_path, "gallery")
    lost.rename(tmp_path / "away")
    reported = root_status(str(tmp_path))
    assert reported["missing_files"] == [f"gallery/{lost.name}"]
    assert reported["images"]["ingested"] == 2
    shown = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert shown.exit_code == 0
    assert lost.name in shown.output.replace("\n", "")
    assert "put these files back" in " ".join(shown.output.split())
    os.rename(tmp_path / "away", lost)
    assert "missing_files" not in root_status(str(tmp_path))
    newest(tmp_path, "ledger").rename(tmp_path / "away")
    shown = CliRunner().invoke(app, ["status", str(tmp_path)])
    assert shown.exit_code == 1
    assert "table 'ledger'" in str(shown.exception)  # `main` says it in one line
    assert "restore" in str(shown.exception)
