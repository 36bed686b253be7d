"""Seam 21: nothing outside the inbox, or outside the folder that lands, is read; what is passed over is told.

A link is not followed wherever it lies, also when it takes a file's place after the file was seen; a pipe, a
socket or a device is never opened.
"""

from __future__ import annotations

import logging
import os
import socket
from pathlib import Path

import pytest

from stream_odml.cli.producer import categories_of
from stream_odml.cluster.ingestion import Discovery
from stream_odml.ingest import sources
from stream_odml.ingest.landing import land_items
from stream_odml.ingest.reading import read_shard
from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard import MANIFEST_NAME, ManifestFile, ShardManifest
from stream_odml.ingest.sources import DirectorySource
from tests.ingest.helpers import land_folder, only, seal, some_items
from tests.seams.folders import classes, ingest, write

pytestmark = pytest.mark.timeout(60)  # a pipe that is opened waits for ever
SECRET = b"SECRET-OF-SOMEBODY-ELSE"


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "secret.png"
    path.parent.mkdir()
    path.write_bytes(SECRET)
    return path


def test_links_and_pipes_in_the_inbox_are_never_opened_and_reported_once(
    tmp_path: Path, secret: Path, caplog: pytest.LogCaptureFixture
) -> None:
    inbox = tmp_path / "inbox"
    land_items(inbox, "a", some_items(2))
    write(tmp_path / "home/zoo", "cats/a.png")
    seal(tmp_path / "home/zoo")
    (inbox / "link.parquet").symlink_to(secret)
    (inbox / "gone.parquet").symlink_to(tmp_path / "nowhere")
    (inbox / "zoo").symlink_to(tmp_path / "home/zoo")
    os.mkfifo(inbox / "pipe.parquet")
    (inbox / "linked-manifest").mkdir()
    (inbox / "linked-manifest" / MANIFEST_NAME).symlink_to(tmp_path / "home/zoo" / MANIFEST_NAME)
    (inbox / "piped-manifest").mkdir()
    os.mkfifo(inbox / "piped-manifest" / MANIFEST_NAME)
    source = DirectorySource(inbox)
    with caplog.at_level(logging.WARNING, logger=sources.__name__):
        for _ in range(3):
            assert [ref.name for ref in source.poll(set())] == ["a.parquet"]
    assert source.passed_over == {
        "link.parquet": "a link", "gone.parquet": "a link", "zoo": "a link", "pipe.parquet": "a FIFO",
        f"linked-manifest/{MANIFEST_NAME}": "a link", f"piped-manifest/{MANIFEST_NAME}": "a FIFO",
    }  # fmt: skip
    assert sum("link.parquet" in record.message for record in caplog.records) == 1
    discovery = Discovery.__new__(Discovery)
    discovery._sources = [source]
    (line,) = discovery.notes
    assert line.startswith("6 not read in the inbox: gone.parquet is a link")


def test_a_folder_that_somebody_copied_into_the_inbox_is_reported(tmp_path: Path) -> None:
    """Nothing of it ever lands, as it has no manifest; one that is just being written is given time."""
    inbox = tmp_path / "inbox"
    for name in ("photos", "new", ".aside", "@eaDir"):
        write(inbox / name, "cats/a.png")
        if name != "new":
            os.utime(inbox / name, (1e9, 1e9))
    source = DirectorySource(inbox)
    assert source.poll(set()) == []
    assert source.passed_over == {"photos": f"a folder without {MANIFEST_NAME}"}
    discovery = Discovery.__new__(Discovery)
    discovery._sources = [source]
    (line,) = discovery.notes
    assert line.endswith("land folders with `stream-odml ingest`")
    seal(inbox / "photos")
    assert [ref.name for ref in source.poll(set())] == ["photos"]
    assert source.passed_over == {}


def test_a_link_in_place_of_a_file_that_was_seen_shows_none_of_its_bytes(
    tmp_path: Path, secret: Path
) -> None:
    land_items(tmp_path / "inbox", "a", some_items(2))
    ref = only(tmp_path / "inbox")
    Path(ref.uri).unlink()
    Path(ref.uri).symlink_to(secret)
    with pytest.raises(BadShard) as refusal:
        list(read_shard(ref))
    assert refusal.value.reason is Reason.UNSAFE_PATH
    assert SECRET[:8] not in refusal.value.first_bytes
    Path(ref.uri).unlink()
    os.mkfifo(ref.uri)
    with pytest.raises(BadShard) as refusal:
        list(read_shard(ref))
    assert refusal.value.reason is Reason.UNSAFE_PATH


def test_what_a_manifest_names_is_read_only_inside_its_shard(tmp_path: Path, secret: Path) -> None:
    shard = write(tmp_path / "inbox/zoo", "cats/a.png", "cats/b.png")
    land_items(tmp_path / "home", "others", some_items(2))
    (shard / "dogs").symlink_to(secret.parent)
    (shard / "cats/link.png").symlink_to(secret)
    (shard / "others.parquet").symlink_to(tmp_path / "home/others.parquet")
    os.mkfifo(shard / "cats/pipe.png")
    names = ("cats/a.png", "cats/link.png", "cats/pipe.png", "dogs/secret.png", "others.parquet")
    files = tuple(ManifestFile(name, (shard / name).stat().st_size) for name in names)
    (shard / MANIFEST_NAME).write_bytes(ShardManifest(files=files).to_bytes())
    found = list(read_shard(only(tmp_path / "inbox")))
    assert classes(tmp_path / "inbox") == ["cats"] + ["unsafe_path"] * 4
    assert all(SECRET[:8] not in getattr(row, "first_bytes", b"") for row in found)


def test_a_folder_lands_without_its_links_and_says_which(
    tmp_path: Path, secret: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "zoo", "cats/a.png", "cats/b.png", "dogs/a.png", "dogs/b.png")
    write(tmp_path / "home/more", "c.png")
    (folder / "linked-class").symlink_to(tmp_path / "home/more")
    (folder / "cats/secret.png").symlink_to(secret)
    (folder / "cats/again.png").symlink_to(folder / "cats/a.png")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "cats/pipe.png")
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)  # a socket's path is short
        listener.bind("socket.png")
        lines = ingest(folder, tmp_path / "inbox")
        assert {one.name: len(one.images) for one in categories_of(folder)} == {"cats": 2, "dogs": 2}
        landed = Path(land_folder(tmp_path / "again", folder))
    assert classes(tmp_path / "inbox") == ["cats", "cats", "dogs", "dogs"]
    assert any(
        line.startswith("4 links (") and "linked-class" in line and "not followed" in line for line in lines
    )
    assert any(line.startswith("2 pipes, sockets or devices (") for line in lines), lines
    sealed = ShardManifest.from_bytes((landed / MANIFEST_NAME).read_bytes())
    assert [file.path for file in sealed.files] == ["cats/a.png", "cats/b.png", "dogs/a.png", "dogs/b.png"]


def test_a_folder_of_links_alone_says_what_to_do(tmp_path: Path) -> None:
    write(tmp_path / "blobs", "a.png", "b.png")
    (tmp_path / "snapshot/cats").mkdir(parents=True)
    for name in "ab":
        (tmp_path / f"snapshot/cats/{name}.png").symlink_to(tmp_path / f"blobs/{name}.png")
    with pytest.raises(ValueError, match=r"holds no image.*2 links .* not followed: copy .*cp -rL"):
        ingest(tmp_path / "snapshot", tmp_path / "inbox")
    assert not (tmp_path / "inbox").exists()


def test_who_names_a_link_may_follow_it(tmp_path: Path) -> None:
    land_items(tmp_path / "home", "others", some_items(2))
    write(tmp_path / "home/zoo", "cats/a.png")
    (tmp_path / "mine.parquet").symlink_to(tmp_path / "home/others.parquet")
    (tmp_path / "photos").symlink_to(tmp_path / "home/zoo")
    lines = [
        *ingest(tmp_path / "mine.parquet", tmp_path / "inbox"),
        *ingest(tmp_path / "photos", tmp_path / "inbox"),
    ]
    assert [Path(line.split()[-1]).name for line in lines] == ["mine-00000.parquet", "photos"]
    assert sorted(classes(tmp_path / "inbox")) == ["cats", "class 0", "class 1"]


def test_a_pipe_cannot_be_landed(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    with pytest.raises(ValueError, match="is a pipe, a socket or a device"):
        ingest(tmp_path / "pipe.parquet", tmp_path / "inbox")


def test_what_will_never_be_a_file_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    """A medium that fails is asked again, for as long as it takes; these would be asked for ever."""
    shard = write(tmp_path / "inbox/zoo", "cats/a.png", "cats/b.png")
    (shard / "cats/folder.png").mkdir()
    long = "cats/" + "x" * 300 + ".png"
    size = (shard / "cats/a.png").stat().st_size
    files = tuple(ManifestFile(name, size) for name in ("cats/a.png", "cats/folder.png", long))
    (shard / MANIFEST_NAME).write_bytes(ShardManifest(files=files).to_bytes())
    assert classes(tmp_path / "inbox") == ["cats", "unsafe_path", "missing_file"]
    land_items(tmp_path / "inbox2", "table", some_items(2))
    ref = only(tmp_path / "inbox2")
    os.unlink(ref.uri)
    os.mkdir(ref.uri)
    with pytest.raises(BadShard, match="is a folder, expected a file") as refusal:
        list(read_shard(ref))
    assert refusal.value.reason is Reason.UNSAFE_PATH
