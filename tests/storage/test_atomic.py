"""A name holds complete bytes, or does not exist; what failed leaves nothing behind."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import IO

import pytest

from stream_odml.storage.atomic import sync_folder, write_whole


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("durable", [True, False])
def test_a_write_that_fails_leaves_what_was_there(tmp_path: Path, durable: bool) -> None:
    target = tmp_path / "name"
    target.write_bytes(b"before")

    def half(file: IO[bytes]) -> None:
        file.write(b"ha")
        raise OSError(errno.ENOSPC, "the disk is full")

    with pytest.raises(OSError, match="full"):
        write_whole(target, half, durable=durable)
    assert (names(tmp_path), target.read_bytes()) == (["name"], b"before")

    def refuse(aside: Path, final: Path) -> None:
        assert aside.read_bytes() == b"whole"
        raise FileExistsError(final)

    with pytest.raises(FileExistsError):
        write_whole(target, lambda file: file.write(b"whole"), durable=durable, show=refuse)
    assert (names(tmp_path), target.read_bytes()) == (["name"], b"before")
    write_whole(target, lambda file: file.write(b"whole"), durable=durable)
    assert (names(tmp_path), target.read_bytes()) == (["name"], b"whole")


def test_bytes_are_synced_before_they_have_their_name_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen = tmp_path / "name", list[tuple[bool, bool]]()
    sync = os.fsync

    def noted(handle: int) -> None:
        seen.append((os.path.isdir(f"/proc/self/fd/{handle}"), target.exists()))
        sync(handle)

    monkeypatch.setattr(os, "fsync", noted)
    write_whole(target, lambda file: file.write(b"whole"))
    assert seen == [(False, False), (True, True)]


def test_a_folder_that_cannot_be_synced_is_an_error_only_where_it_could_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(number: int) -> None:
        def fsync(handle: int) -> None:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(os, "fsync", fsync)

    failing(errno.EINVAL)
    sync_folder(tmp_path)
    failing(errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        sync_folder(tmp_path)
