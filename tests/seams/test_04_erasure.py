"""Seam 04: a request for erasure names something, says how many items it covers, or is an error.

By the command line and over HTTP, for a class, an item and a shard: names are looked up as landing stores them; a name
that nothing bears is exit code 1 or 404 with the nearest names, leaves no tombstone, and is never proven gone.
"""

from __future__ import annotations

import threading
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.client import Client, ServiceError
from stream_odml.cluster.driver import StreamDriver
from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.service.api import create_app
from stream_odml.service.backend import Driver, refusal
from stream_odml.service.replica import Replica
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.seams.in_process import in_process
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream, picture

CLASS = "Étude no. 7"
ITEM = "blätter/0"
SPELLINGS = [
    lambda name: name,
    lambda name: unicodedata.normalize("NFD", name),
    lambda name: f"  {name}\t",
    lambda name: f" {unicodedata.normalize('NFD', name)}\n",
]


class Here(Driver):
    """The driver's own method over a writer of this process, with the service's reading of its errors."""

    def __init__(self, writer: Writer) -> None:
        self._self = SimpleNamespace(
            _lock=threading.RLock(),
            _writer=writer,
            _tidying=SimpleNamespace(erase_soon=lambda: None),
            _refresh_figures=lambda force: None,
        )

    async def forget(self, kind: str, name: str) -> Mapping[str, Any]:
        try:
            return StreamDriver.request_forget(self._self, kind, name)  # type: ignore[arg-type]
        except ValueError as error:
            raise refusal(error) from None


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TinyStream]:
    """Two shards: three items of CLASS in the first, one of which the second replaces, and two of "oak"."""
    stream = TinyStream(tmp_path)
    first = [NewItem(picture(i), CLASS, f"blätter/{i}") for i in range(3)]
    land_items(stream.inbox, "first", [*first, NewItem(picture(4), "oak", "o/1"), NewItem(picture(5), "oak")])
    land_items(stream.inbox, "second", [NewItem(picture(6), CLASS, "blätter/2")])
    stream.ingest()
    yield stream
    stream.close()


@pytest.fixture
def api(stream: TinyStream) -> Iterator[LocalApi]:
    replica = Replica(stream.root, ServiceOptions(poll_s=0.02), Here(stream.writer))
    replica.start()
    with LocalApi(create_app(replica, ServiceOptions())) as api:
        yield api
    replica.close()


def _shard(stream: TinyStream, name: str = "first.parquet") -> str:
    return next(s.shard_id for s in stream.writer.ledger.shards.values() if s.name == name)


def _name(stream: TinyStream, kind: str) -> tuple[str, int]:
    return {"class": (CLASS, 3), "item": (ITEM, 1), "shard": (_shard(stream), 5)}[kind]


def _tombstones(stream: TinyStream) -> list[tuple[str, str, int | None]]:
    return [(s.kind, s.name, s.items) for s in Store.open(stream.root).ledger.tombstones]


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("kind", ["class", "item", "shard"])
def test_the_command_covers_what_landing_stored_and_says_how_much(
    stream: TinyStream, kind: str, spell: Any
) -> None:
    name, items = _name(stream, kind)
    stream.writer.release()
    command = ["forget", stream.root, f"--{kind}", spell(name)]
    said = CliRunner().invoke(app, command)
    assert said.exit_code == 0, said.output
    assert f"{name}, {items} item" in said.output
    assert _tombstones(stream) == [(kind, name, items)]
    left = Store.open(stream.root).gallery_rows(vectors=False).to_pylist()
    column = {"class": "class_name", "item": "item_id", "shard": "shard_id"}[kind]
    assert not [row for row in left if row[column] == name]
    proof = CliRunner().invoke(app, [*command, "--verify"])
    assert f"covered {items} item" in proof.output
    assert "found in" not in proof.output
    again = CliRunner().invoke(app, command)
    assert (again.exit_code, "0 items" in again.output) == (0, True), "a repetition is no error"


@pytest.mark.parametrize("spell", SPELLINGS)
@pytest.mark.parametrize("kind", ["class", "item", "shard"])
def test_the_service_covers_what_landing_stored_and_says_how_much(
    stream: TinyStream, api: LocalApi, kind: str, spell: Any
) -> None:
    name, items = _name(stream, kind)
    path = {"class": "classes", "item": "items", "shard": "shards"}[kind]
    answer = api.delete(f"/v1/{path}/{quote(spell(name), safe='')}")
    assert answer.status_code == 202, answer.text
    reported = answer.json()
    assert reported.pop("sequence") > 0  # what a search that must not show it any more asks for
    assert reported == {"forgotten": name, "kind": kind, "items": items}
    assert _tombstones(stream) == [(kind, name, items)]


WRONG = {
    "class": ["Étude no. 8", "étude no. 7", "Etude no. 7", "Étude  no. 7", "oka", "", "..", "x" * 3000, "\x1b[31m"],
    "item": ["blätter/9", "blatter/0", "BLÄTTER/0", "o/2", "/", "thumbnail", "\u202eo/1", "nothing like it"],
    "shard": ["first.parquet-0123456789abcdef", "frist.parquet", "push-0/1", "../first.parquet"],
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_a_name_that_covers_nothing_is_an_error_everywhere(stream: TinyStream, kind: str) -> None:
    shell = CliRunner()
    stream.writer.release()
    for name in WRONG[kind]:
        for more in ([], ["--verify"], ["--verify", "--inbox", "--yes"]):
            said = shell.invoke(app, ["forget", stream.root, f"--{kind}", name, *more])
            assert said.exit_code == 1, (name, said.output)
            assert "What stays" not in said.output, name
            assert f"no {kind}" in str(said.exception), name
    assert _tombstones(stream) == []
    writer = Writer.claim(stream.root, "test")
    replica = Replica(stream.root, ServiceOptions(), Here(writer))
    replica.start()
    served = create_app(replica, ServiceOptions())
    with Client("http://127.0.0.1", transport=in_process(served), retries=0) as client:
        ask = {"class": client.delete_class, "item": client.delete, "shard": client.delete_shard}[kind]
        for name in WRONG[kind]:
            with pytest.raises(ServiceError) as refused:
                ask(name)
            assert refused.value.status == 404, name
    assert _tombstones(stream) == []
    replica.close()
    writer.release()


@pytest.mark.parametrize(
    ("kind", "wrong", "meant"),
    [
        ("class", "Etude no. 7", CLASS),
        ("class", "OAK", "oak"),
        ("item", "blätter/00", ITEM),
        ("shard", "frist.parquet", "first.parquet"),
    ],
)
def test_the_nearest_names_are_listed(
    stream: TinyStream, api: LocalApi, kind: str, wrong: str, meant: str
) -> None:
    path = {"class": "classes", "item": "items", "shard": "shards"}[kind]
    answer = api.delete(f"/v1/{path}/{quote(wrong, safe='')}")
    assert answer.status_code == 404
    assert repr(meant) in answer.json()["detail"]
    stream.writer.release()
    assert repr(meant) in str(CliRunner().invoke(app, ["forget", stream.root, f"--{kind}", wrong]).exception)


def test_what_was_forgotten_is_no_near_name_and_is_not_counted_again(
    stream: TinyStream, api: LocalApi
) -> None:
    assert api.delete(f"/v1/items/{quote('blätter/1', safe='')}").json()["items"] == 1
    assert api.delete(f"/v1/classes/{quote(CLASS)}").json()["items"] == 2
    assert api.delete(f"/v1/shards/{_shard(stream)}").json()["items"] == 2, "the oaks"
    assert "nearest" not in api.delete(f"/v1/classes/{quote(CLASS + '!')}").json()["detail"]


def test_a_shard_goes_by_its_name_while_one_shard_has_it(stream: TinyStream, api: LocalApi) -> None:
    """A push is answered with the name."""
    assert api.delete("/v1/shards/second.parquet").json()["forgotten"] == _shard(stream, "second.parquet")
    (stream.inbox / "first.parquet").unlink()
    land_items(stream.inbox, "first", [NewItem(picture(9), "elm")])
    stream.ingest()
    refused = api.delete("/v1/shards/first.parquet")
    assert refused.status_code == 404
    assert all(s.shard_id in refused.json()["detail"] for s in stream.writer.ledger.shards.values() if s.name == "first.parquet")  # fmt: skip  # noqa: E501


def test_what_waits_to_be_indexed_is_reported(stream: TinyStream, api: LocalApi) -> None:
    land_items(stream.inbox, "third", [NewItem(picture(9), "elm")])
    assert "pushed a moment ago" in api.delete("/v1/classes/elm").json()["detail"], (
        "the driver has not seen it"
    )
    stream.writer.record_landed([r for r in stream._source.poll(stream._seen) if r.name == "third.parquet"])
    answer = api.delete("/v1/classes/elm")
    assert (answer.status_code, "1 landed shard" in answer.json()["detail"]) == (404, True)


def test_a_request_that_nobody_counted_proves_nothing(stream: TinyStream) -> None:
    """As releases before this one left them: tombstones of names that nothing bore."""
    for kind, name in (("class", "Etude"), ("item", "blatter")):
        stream.writer.forget(kind, name)  # type: ignore[arg-type]
        said = CliRunner().invoke(app, ["forget", stream.root, f"--{kind}", name, "--verify"])
        assert said.exit_code == 1
        assert "What stays" not in said.output
    stream.writer.forget("class", CLASS)
    said = CliRunner().invoke(app, ["forget", stream.root, "--class", CLASS, "--verify"])
    assert "covered 4 items" in said.output, "by the ledger's counts, replaced ones among them"
