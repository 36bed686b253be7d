"""Seam 20: a stream root is somebody else's data. No name or link in it reaches a file outside it, nothing that is no
regular file blocks who reads it, no number in it holds anybody up, and no token goes to an address that it names."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from deltalake import DeltaTable
from typer.testing import CliRunner

from stream_odml.cli.main import app as cli
from stream_odml.cli.stream_root import noted_url, roll_back, root_status
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.sources import DirectorySource
from stream_odml.storage.files import LocalFiles, open_files
from stream_odml.storage.regular import UnsafePath
from stream_odml.store.artifacts import BACKWARD, FORWARD, STUDENT, ArtifactRef
from stream_odml.store.backup import BackupFailed, back_up
from stream_odml.store.lease import LEASE, Lease, host_identity, read_lease
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.tables import SCHEMAS
from stream_odml.store.writer import IngestBatch, Writer
from tests.cluster.small_root import claim
from tests.service.tiny_stream import picture
from tests.store.world import Item, ingest, new_root

NOW = MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(0))
PROMPT_S = 60.0


@pytest.fixture(autouse=True)
def prompt() -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < PROMPT_S


@pytest.fixture
def root(tmp_path: Path) -> Path:
    writer = new_root(str(tmp_path / "root"))
    ingest(writer, "a", [Item("x", "cat")])
    writer.release()
    return tmp_path / "root"


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious.parquet").write_bytes(b"precious")
    return tmp_path / "outside"


def commit(table: Path, *actions: dict[str, Any]) -> None:
    version = DeltaTable(str(table)).version() + 1
    (table / "_delta_log" / f"{version:020d}.json").write_text("\n".join(map(json.dumps, actions)))


def added(path: str) -> dict[str, Any]:
    add = {"path": path, "partitionValues": {}, "size": 8, "modificationTime": 1, "dataChange": True}
    return {"add": add}


NAMES = [
    "../../outside/precious.parquet",
    "{outside}/precious.parquet",
    "file://{outside}/precious.parquet",
    "%2E%2E/%2E%2E/outside/precious.parquet",
    "x/../../../outside/precious.parquet",
    "..\\precious.parquet",
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("known", [False, True], ids=["fresh", "following"])
def test_a_log_names_no_file_outside(
    name: str, known: bool, root: Path, outside: Path, tmp_path: Path
) -> None:
    store = Store.open(str(root)) if known else None
    for table in SCHEMAS:
        commit(root / table, added(name.format(outside=outside)))
    with pytest.raises((UnsafePath, FileNotFoundError), match=r"outside|lies|not there"):
        (store.refresh if store else lambda: Store.open(str(root)))()
    with pytest.raises((UnsafePath, FileNotFoundError)):
        back_up(str(root), str(tmp_path / "deep" / "er" / "copy"))
    assert sorted(path.name for path in tmp_path.iterdir()) in (
        ["deep", "outside", "root"],
        ["outside", "root"],
    )
    assert (outside / "precious.parquet").read_bytes() == b"precious"


def test_a_log_deletes_no_file_outside(root: Path, outside: Path) -> None:
    gone = {"deletionTimestamp": 1, "dataChange": True}
    commit(root / "gallery", *({"remove": {"path": n.format(outside=outside), **gone}} for n in NAMES))
    writer = Writer.claim(str(root), "test")
    writer.maintain(NOW)
    writer.release()
    assert (outside / "precious.parquet").read_bytes() == b"precious"


def link_folder(root: Path, outside: Path) -> None:
    (root / "gallery" / "more").symlink_to(outside)


def link_file(root: Path, outside: Path) -> None:
    (root / "gallery" / "more.parquet").symlink_to(outside / "precious.parquet")


def link_table(root: Path, outside: Path) -> None:
    shutil.move(root / "quarantine", outside / "quarantine")
    (root / "quarantine").symlink_to(outside / "quarantine")


def link_artifacts(root: Path, outside: Path) -> None:
    shutil.move(root / "artifacts", outside / "artifacts")
    (root / "artifacts").symlink_to(outside / "artifacts")


@pytest.mark.parametrize("plant", [link_folder, link_file, link_table, link_artifacts])
def test_no_link_is_followed_by_maintenance_or_backup(
    plant: Callable[[Path, Path], None], root: Path, outside: Path, tmp_path: Path
) -> None:
    plant(root, outside)
    before = sorted(str(path) for path in outside.rglob("*"))
    with pytest.raises(UnsafePath, match="link"):
        back_up(str(root), str(tmp_path / "copy"))
    with pytest.raises(UnsafePath, match="link"):
        Writer.claim(str(root), "test").maintain(NOW)
    assert sorted(str(path) for path in outside.rglob("*")) == before


def fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def listening(path: Path) -> None:
    path.unlink(missing_ok=True)
    here = os.getcwd()
    os.chdir(path.parent)  # a socket's path is short
    with socket.socket(socket.AF_UNIX) as door:
        door.bind(path.name)
    os.chdir(here)


def device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


STRANGE = [fifo, listening, device]


@pytest.mark.parametrize("plant", STRANGE)
def test_what_is_no_regular_file_blocks_nobody(plant: Callable[[Path], None], root: Path) -> None:
    store = Store.open(str(root))
    data = next(iter((root / "gallery").glob("*.parquet")))
    plant(data)
    with pytest.raises(UnsafePath, match=r"regular file|leads out"):
        Store.open(str(root))
    plant(root / "gallery" / "_delta_log" / f"{store.tables['gallery'].version + 1:020d}.json")
    for read in (store.refresh, lambda: Store.open(str(root)), lambda: root_status(str(root))):
        with pytest.raises(UnsafePath, match="remove it"):
            read()


@pytest.mark.parametrize("plant", STRANGE)
def test_lease_and_endpoints_that_are_no_files_are_none(plant: Callable[[Path], None], root: Path) -> None:
    plant(root / LEASE)
    plant(root / "endpoints.json")
    assert read_lease(open_files(str(root))) is None
    assert root_status(str(root))["service"] is None
    Writer.claim(str(root), "test").release()


@pytest.mark.parametrize("plant", STRANGE)
def test_an_artifact_that_is_no_file_is_refused(plant: Callable[[Path], None], root: Path) -> None:
    store = Store.open(str(root))
    plant(root / store.tree.get(store.tree.head).artifacts[STUDENT].path)
    with pytest.raises(UnsafePath):
        store.artifact(store.tree.head, STUDENT)


@pytest.mark.parametrize(
    "name", ["../outside/precious.parquet", "{outside}/precious.parquet", "..", "", "a\0b"]
)
def test_no_name_of_a_row_reaches_outside(name: str, root: Path, outside: Path) -> None:
    files, path = LocalFiles(str(root)), name.format(outside=outside)
    for use in (
        lambda: files.read(path),
        lambda: files.write(path, b"mine"),
        lambda: files.delete(path),
        lambda: files.exists(path),
        lambda: files.local(path).__enter__(),
    ):
        with pytest.raises(UnsafePath):
            use()
    assert (outside / "precious.parquet").read_bytes() == b"precious"


def test_a_version_that_names_a_file_outside_is_not_committed(root: Path, outside: Path) -> None:
    writer = Writer.claim(str(root), "test")
    writer.close_task("task-0001", ["a"], "test")
    version = writer.begin_attempt("task-0001")
    bad = ArtifactRef("../outside/precious.parquet", "0" * 64, 8)
    with pytest.raises(UnsafePath):
        writer.commit_stage(
            version, writer.tree.head, "task-0001", dict.fromkeys((STUDENT, FORWARD, BACKWARD), bad), []
        )
    writer.release()


GOOD: dict[str, Any] = {
    "token": "t",
    "holder": "other",
    "host": "elsewhere",
    "pid": 1,
    "pid_start": "1",
    "wall": 0.0,
    "boot_clock": 0.0,
    "lease_s": 10.0,
    "epoch": 0,
}
ODD: list[dict[str, Any]] = [
    {"lease_s": 1e300},
    {"lease_s": float("inf")},
    {"lease_s": float("nan")},
    {"lease_s": 3601.0},
    {"lease_s": -1},
    {"lease_s": "60"},
    {"lease_s": True},
    {"wall": 1e300},
    {"wall": "now"},
    {"ahead": True},
    {"pid": -1},
    {"pid": 1e300},
    {"pid": "self"},
    {"pid": "../1"},
    {"epoch": 1e300},
    {"epoch": 2**70},
    {"holder": 5},
    {"holder": "x" * 10_000},
    {"holder": "\x1b]0;x\x07"},
    {"host": None},
    {"boot_clock": 1e300, "here": True},
    {"more": 1},
]


@pytest.mark.parametrize("odd", ODD, ids=str)
def test_no_lease_holds_a_root_for_ever(odd: dict[str, Any], root: Path) -> None:
    body = {**GOOD, "wall": time.time()}
    odd = dict(odd)
    body["wall"] += 1e6 if odd.pop("ahead", False) else 0
    body["host"] = host_identity() if odd.pop("here", False) else body["host"]
    (root / LEASE).write_text(json.dumps(body | odd))
    assert read_lease(open_files(str(root))) is None
    Writer.claim(str(root), "test").release()


def test_a_sound_lease_is_one(root: Path) -> None:
    (root / LEASE).write_text(json.dumps({**GOOD, "wall": time.time()}))
    seen = read_lease(open_files(str(root)))
    assert seen is not None
    assert seen.alive()
    for lease_s in (0.0, float("nan"), 1e300):
        with pytest.raises(ValueError, match="lease_s is"):
            Lease.acquire(open_files(str(root)), "test", lease_s)


def note(root: Path, service: object, pid: object = None) -> None:
    reported = {"host": platform.node(), "pid": os.getpid() if pid is None else pid, "service": service}
    (root / "endpoints.json").write_text(json.dumps(reported))


FAR = [
    "http://evil.example:80",
    "https://10.0.0.7:443",
    "http://localhost.evil.example",
    "http://127.0.0.1.evil.example",
    "http://[2001:db8::1]:80",
    "http://0x7f.evil.example",
    "http://0.0.0.0:80",
]
NO_ADDRESS = [
    "http://127.0.0.1@evil.example",
    "http://127.0.0.1:80@evil.example/",
    "http://evil.example\\@127.0.0.1",
    "http://127.0.0.1/../x",
    "ftp://127.0.0.1",
    "file:///etc/passwd",
    "javascript:alert(1)",
    "//evil.example",
    "http://",
    5,
    None,
    "",
    ["http://127.0.0.1"],
    "http://127.0.0.1:80/?a=b",
    "http://127.0.0.1\n.evil",
]


@pytest.mark.parametrize("url", FAR)
def test_a_token_goes_to_no_address_out_of_a_file(
    url: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note(root, url)
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail(f"looked up {a[0]}"))
    with pytest.raises(ValueError, match=r"not this machine.*--url"):
        noted_url(str(root), "secret")
    with pytest.raises(ValueError, match=r"not this machine.*--url"):
        roll_back(str(root), "v0000", True, None, "secret")


@pytest.mark.parametrize("url", NO_ADDRESS, ids=str)
def test_what_is_no_address_is_none(url: object, root: Path) -> None:
    note(root, url)
    assert noted_url(str(root), "secret") is None


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:8000", "http://localhost:1", "http://[::1]:80", "https://127.9.9.9"]
)
def test_this_machine_gets_it(url: str, root: Path) -> None:
    note(root, url)
    assert noted_url(str(root), "secret") == url
    for pid in ("../../etc", "self", 10**12, None.__class__.__name__):
        note(root, url, pid)
        assert noted_url(str(root), "secret") is None


@pytest.mark.parametrize("way", ["outside", "linked inbox", "changed after landing"])
def test_forget_deletes_no_file_that_is_no_shard_of_an_inbox(way: str, tmp_path: Path) -> None:
    """A ledger could name any file of its reader that holds such a row."""
    root, folder = tmp_path / "root", tmp_path / "papers"
    if way == "linked inbox":
        folder.mkdir()
        (tmp_path / "inbox").symlink_to(folder)
    elif way == "changed after landing":
        folder = tmp_path / "inbox"
    land_items(folder, "a", [NewItem(picture(1), "oak", "o/1")])
    (ref,) = DirectorySource(folder).poll(set())
    writer = claim(str(root))
    writer.record_landed([ref])
    writer.commit_ingest(IngestBatch([ref.shard_id], SCHEMAS["gallery"].empty_table()))
    writer.forget("shard", ref.shard_id, 1)
    writer.release()
    mine = folder / "a.parquet"
    if way == "changed after landing":
        mine.unlink()
        land_items(folder, "a", [NewItem(picture(2), "oak", "o/1")])
    ask = ["forget", str(root), "--shard", ref.shard_id, "--verify", "--inbox", "--yes"]
    said = CliRunner().invoke(cli, ask)
    assert mine.exists(), said.output
    if way == "outside":
        assert (said.exit_code, "--inbox-at" in said.output) == (1, True)
        assert CliRunner().invoke(cli, [*ask, "--inbox-at", str(folder)]).exit_code == 0
        assert not mine.exists()


def test_a_backup_does_not_go_into_its_own_root(root: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(root)
    for target in (root / "copy", root / "artifacts/copy", tmp_path / "link/copy"):
        with pytest.raises(BackupFailed, match="outside of it"):
            back_up(str(root), str(target))
        assert not list(root.glob("**/copy/*"))


@pytest.mark.parametrize("name", [LEASE, "endpoints.json"])
def test_a_file_of_a_few_values_is_not_read_where_it_is_huge(name: str, root: Path) -> None:
    with open(root / name, "wb") as file:
        file.truncate(1 << 40)  # more than any memory; it takes no room on the disk
    assert noted_url(str(root), None) is None
    assert read_lease(open_files(str(root))) is None
