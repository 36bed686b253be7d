"""Seam 47: a place that is named by mistake takes nothing: neither the stream root in place of its inbox, where nobody
looks for shards, nor the working folder for want of a name, nor an object store without a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from stream_odml.cli.asking import query
from stream_odml.cli.changing import forget
from stream_odml.cli.ingest import land_path
from stream_odml.client import Client
from stream_odml.client.calls import NewImage, push, search_image
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.exporting import export
from stream_odml.exchange.places import open_target
from stream_odml.storage.files import open_files
from stream_odml.store.store import Store
from tests.seams.folders import write
from tests.service.tiny_stream import TinyStream


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("place", ["", " ", "~/inbox", "$INBOX"])
def test_images_land_in_a_place_that_was_named(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = write(tmp_path / "photos", "cats/a.png", "dogs/b.png")
    monkeypatch.chdir(tmp_path)
    before = everything(tmp_path)
    with pytest.raises(ValueError, match="inbox"):
        list(land_path(photos, place, 10, None))
    assert everything(tmp_path) == before


def test_images_do_not_land_in_a_root_in_place_of_its_inbox(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    stream.close()
    photos = write(tmp_path / "photos", "cats/a.png", "dogs/b.png")
    before = everything(tmp_path)
    for root in (stream.root, f"{stream.root}/"):
        with pytest.raises(ValueError, match=rf"is a stream root.*name its inbox, {stream.root}/inbox"):
            list(land_path(photos, root, 10, None))
    assert everything(tmp_path) == before
    with pytest.raises(ExchangeError, match="is a stream root"):
        export(stream.root, stream.root)
    assert everything(tmp_path) == before
    assert list(land_path(photos, f"{stream.root}/inbox", 10, None))


@pytest.mark.parametrize("place", ["", " "])
def test_nothing_is_no_folder_to_write_to(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="has no name"):
        open_target(place)
    with pytest.raises(ValueError, match="has no name"):
        export("root", place)
    with pytest.raises(ValueError, match="has no name"):
        open_files(place)
    with pytest.raises(ValueError, match="names no bucket"):
        open_files("s3://")
    assert not everything(tmp_path)


def asked(command: Any, *words: str) -> str:
    app = typer.Typer()
    app.command()(command)
    ended = CliRunner().invoke(app, words)
    assert ended.exit_code == 1
    return str(ended.exception)


def test_an_option_that_would_do_nothing_is_refused(tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    stream.land("one", ["cat"])
    stream.close()
    assert "goes with --verify" in asked(forget, stream.root, "--class", "cat", "--inbox", "--yes")
    assert not Store.open(stream.root).ledger.tombstones
    (tmp_path / "a.png").write_bytes(stream.images["one/0"])
    assert "name the service" in asked(query, str(tmp_path / "a.png"), "--url", "")


def test_a_client_that_may_not_ask_even_once_is_none() -> None:
    with pytest.raises(ValueError, match="retries"):
        Client(retries=-1)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_client_takes_bytes_of_any_kind(kind: Any) -> None:
    assert search_image(kind(b"abc")).json["image"] == "YWJj"
    assert push([NewImage(kind(b"abc"), "a")]).json["items"][0]["image"] == "YWJj"
