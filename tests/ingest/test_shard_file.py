"""How much is asked of an object store to read one file."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from stream_odml.ingest import shard_file
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard_file import ShardFile


class Remote(io.BytesIO):
    """A file of an object store that counts what is asked for; `fails` that often."""

    def __init__(self, data: bytes, fails: int = 0) -> None:
        super().__init__(data)
        self.asked, self.fails = 0, fails

    def size(self) -> int:
        return len(self.getbuffer())

    def metadata(self) -> dict[bytes, bytes]:
        return {b"ETag": b"e"}

    def _ask(self) -> None:
        self.asked += 1
        if self.asked <= self.fails:
            raise OSError("slow down")

    def read_at(self, count: int, offset: int) -> bytes:
        self._ask()
        return self.getvalue()[offset : offset + count]

    def readinto(self, buffer: Any) -> int:
        self._ask()
        return super().readinto(buffer)


def opened(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> ShardFile:
    store = SimpleNamespace(open_input_file=lambda path: remote)
    monkeypatch.setattr(shard_file, "s3_filesystem", lambda options: store)
    return ShardFile("s3://bucket/a.parquet")


@pytest.mark.parametrize(("limit", "asked"), [(1000, 1), (999, 3)])
def test_a_small_file_is_asked_for_once(limit: int, asked: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_file, "FETCHED_WHOLE", limit)
    data = bytes(range(250)) * 4
    remote = Remote(data)
    with opened(remote, monkeypatch) as file:
        for place in (990, 0, 500):
            file.seek(place)
            assert file.read(10) == data[place : place + 10]
        assert file.tell() == 510
        assert file.size_bytes == 1000
    assert remote.asked == asked


def test_one_that_failed_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """From where it stood."""
    with opened(Remote(b"abc", fails=1), monkeypatch) as file:
        file.seek(1)
        with pytest.raises(TransientReadError, match="slow down"):
            file.read(2)
        assert file.read(2) == b"bc"
