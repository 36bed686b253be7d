"""Producers: whole or not at all, durable, and safe to repeat."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest.landing import (
    NewItem,
    ShardExists,
    complete_task,
    land_file,
    land_items,
    land_parquet,
    push_name,
)
from stream_odml.ingest.sources import DirectorySource
from tests.ingest.helpers import land_folder, only, read, some_items
from tests.ingest.pictures import picture
from tests.ingest.webdataset import land_tar


def test_repeating_is_harmless_and_other_bytes_are_refused(tmp_path: Path) -> None:
    for _ in range(2):
        uri = land_items(tmp_path, "s", some_items(5))
    assert os.listdir(tmp_path) == ["s.parquet"]
    assert uri == str(tmp_path / "s.parquet")
    with pytest.raises(ShardExists, match="choose another name"):
        land_items(tmp_path, "s", some_items(5, first=9))
    assert len(read(only(tmp_path))[0]) == 5
    assert os.listdir(tmp_path) == ["s.parquet"]


def test_a_producer_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[NewItem]:
        yield from some_items(300)
        raise RuntimeError("the camera is gone")

    for land in (land_items, land_tar):
        with pytest.raises(RuntimeError, match="camera"):
            land(tmp_path, "s", broken())
    with pytest.raises(ValueError, match="at least one"):
        land_items(tmp_path, "s", [])
    assert os.listdir(tmp_path) == []


def test_a_killed_producer_is_never_seen(tmp_path: Path) -> None:
    code = (
        "import dataclasses, itertools\n"
        "from stream_odml.ingest.landing import land_items\n"
        "from tests.ingest.helpers import some_items\n"
        "item = some_items(1)[0]\n"
        "items = (dataclasses.replace(item, item_id=str(i)) for i in itertools.count())\n"
        f"land_items({str(tmp_path)!r}, 's', items)\n"
    )
    child = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.getcwd()})
    while not any(path.stat().st_size > 10_000 for path in tmp_path.iterdir()):
        assert child.poll() is None
        assert DirectorySource(tmp_path).poll(set()) == []
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert [name[0] for name in os.listdir(tmp_path)] == ["."]
    assert DirectorySource(tmp_path).poll(set()) == []
    land_items(tmp_path, "s", some_items(2))
    assert len(read(only(tmp_path))[0]) == 2


def test_bytes_are_durable_before_the_name_and_the_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    fsync, link = os.fsync, os.link

    def synced(handle: int) -> None:
        steps.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "bytes")
        fsync(handle)

    def linked(source: Path, target: Path) -> None:
        steps.append("name")
        link(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "link", linked)
    land_items(tmp_path, "s", some_items(2))
    assert steps == ["bytes", "name", "folder"]
    # Who repeats a push may be answered while the first is between its name and its folder.
    land_items(tmp_path, "s", some_items(2))
    assert steps[3:] == ["bytes", "name", "folder"]


def test_parquet_is_cut_into_shards_with_names_for_its_labels(tmp_path: Path) -> None:
    table = pa.table(
        {"image": [picture(n) for n in range(25)], "label": [["cat", "dog"][n % 2] for n in range(25)]}
    )
    pq.write_table(table, tmp_path / "big.parquet", row_group_size=7)
    uris = list(land_parquet(tmp_path / "inbox", tmp_path / "big.parquet", 10))
    assert [Path(uri).name for uri in uris] == [f"big-0000{n}.parquet" for n in range(3)]
    rows = [row for ref in DirectorySource(tmp_path / "inbox").poll(set()) for row in read(ref)[0]]
    assert [row.image for row in rows] == table["image"].to_pylist()
    assert [row.class_name for row in rows] == [["cat", "dog"][n % 2] for n in range(25)]


def test_files_as_they_are(tmp_path: Path) -> None:
    land_tar(tmp_path / "elsewhere", "s", some_items(4))
    land_file(tmp_path / "inbox", tmp_path / "elsewhere/s.tar", "again.tar")
    assert len(read(only(tmp_path / "inbox"))[0]) == 4
    with pytest.raises(ValueError, match="is an archive: unpack it"):
        land_file(tmp_path / "inbox", tmp_path / "elsewhere/s.tar", "s.zip")


def test_folders(tmp_path: Path) -> None:
    (tmp_path / "zoo/cats").mkdir(parents=True)
    (tmp_path / "zoo/cats/a.png").write_bytes(picture())
    for _ in range(2):
        land_folder(tmp_path / "inbox", tmp_path / "zoo", task="spring", task_complete=True)
    ref = only(tmp_path / "inbox")
    assert ref.manifest is not None
    assert (ref.manifest.task, ref.manifest.task_complete, ref.manifest.files) == ("spring", True, ())
    (tmp_path / "zoo/cats/a.png").write_bytes(picture(1))
    with pytest.raises(ShardExists):
        land_folder(tmp_path / "inbox", tmp_path / "zoo")
    assert os.listdir(tmp_path / "inbox") == ["zoo"]
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="no image"):
        land_folder(tmp_path / "inbox", tmp_path / "none")


def test_a_complete_task_names_its_shards(tmp_path: Path) -> None:
    uris = [land_items(tmp_path, f"s{n}", some_items(2, first=n)) for n in range(2)]
    complete_task(tmp_path, "spring", uris)
    (ref,) = [ref for ref in DirectorySource(tmp_path).poll(set()) if ref.format == "task"]
    assert ref.manifest is not None
    assert ref.manifest.task == "spring"
    assert ref.manifest.task_complete
    assert ref.manifest.shards == ("s0.parquet", "s1.parquet")
    assert read(ref) == ([], [])


@pytest.mark.parametrize("name", ["", ".hidden", "_x", "a/b", "../x", "a b", "x" * 200])
def test_names_that_no_source_would_see(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=r"shard name|expected"):
        land_items(tmp_path, name, some_items(1))


def test_pushed_images_have_the_name_of_their_key() -> None:
    assert push_name("order 66/\u00e9") == push_name("order 66/\u00e9") != push_name("order 67")
    with pytest.raises(ValueError, match="empty"):
        push_name("")
