"""What is written for others lies in no stream root: not in an inbox, where it would be taken for shards."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.exporting import export
from stream_odml.exchange.places import open_target
from stream_odml.storage.outside import root_around
from stream_odml.store.backup import BackupFailed, back_up
from tests.service.tiny_stream import TinyStream


def everything(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


@pytest.mark.parametrize("inside", ["inbox", "ledger", "gallery/sub", "sync", "link/sub"])
def test_nothing_is_exported_synced_or_copied_into_a_root(tmp_path: Path, inside: str) -> None:
    """Into its own, another one, or by way of a link from outside."""
    stream, other = TinyStream(tmp_path / "one"), TinyStream(tmp_path / "other")
    stream.close()
    other.close()
    (tmp_path / "link").symlink_to(Path(stream.root) / "inbox")
    place = tmp_path / inside if inside.startswith("link") else Path(stream.root) / inside
    before = everything(tmp_path)
    for source in (stream.root, other.root):
        with pytest.raises(ExchangeError, match=r"lies in the stream root .*; name a folder outside of it"):
            export(source, str(place), formats=["parquet"])
        with pytest.raises(BackupFailed, match=r"lies in the stream root|is not empty|holds a stream root"):
            back_up(source, str(place))
    for url in ("", "lancedb://", "qdrant://"):
        with pytest.raises(ExchangeError, match=r"lies in the stream root .*; name a folder outside of it"):
            open_target(f"{url}{place}{'/items' if url else ''}")
    assert everything(tmp_path) == before


def test_an_export_does_not_go_around_a_root(tmp_path: Path) -> None:
    """`model/` of an export may be a root, as a folder above one may hold it."""
    stream = TinyStream(tmp_path)
    stream.close()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model").symlink_to(stream.root)
    before = everything(tmp_path)
    with pytest.raises(ExchangeError, match="lies in the stream root"):
        export(stream.root, str(tmp_path / "out"), formats=["parquet"])
    with pytest.raises(ExchangeError, match="holds the stream root"):
        export(stream.root, str(Path(stream.root).parent), formats=["parquet"])
    assert everything(tmp_path) == before


def test_beside_a_root_and_in_an_object_store_there_is_room(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    stream.close()
    assert root_around(f"{stream.root}-copy", stream.root) is None
    assert root_around("s3://bucket/root-copy", "s3://bucket/root") is None
    assert root_around("s3://bucket/root/copy", "s3://bucket/root") == "s3://bucket/root"
