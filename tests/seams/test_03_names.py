"""Seam 03: what the service answers 202 to is taken by the reader of the shard, under the names of the answer.

Class names, ids, attributes and times pass one set of checks at the HTTP door, at landing and at reading: what one of
them refuses the others refuse, and what they take comes out equal everywhere, down to the gallery and its addresses.
"""

from __future__ import annotations

import base64
import io
import json
import random
import tarfile
import time
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from stream_odml.client import Client, NewImage, ServiceError
from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import RowError, RowProblem
from stream_odml.ingest.sources import DirectorySource
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from tests.seams.in_process import in_process
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream, picture

OPTIONS = ServiceOptions(poll_s=0.02, wait_s=30.0)
IMAGE = picture(1)
PIECES = [
    "cat", "é", "e\u0301", "фото", "می\u200cخواهم", "👩\u200d🔬", "\u1100\u1161", "ﬃ", "Å",
    "A\u030a", "/", "//", "?", "#", "%", "%2F", "%41", "+", " ", "\u00a0", "\u3000", "\t", "\n",
    "\r\n", "\0", "\x1b[31m", "\x7f", "\x85", "\x9b", "\u2028", "\u2029", "\u200b", "\u200e",
    "\u202e", "\u2066", "\ufeff", "\u00ad", "\ud800", "\U000e0041", "\u3164", "\u2800", ".",
    "..", "...", "/thumbnail", "thumbnail", "..%2f", "\\", "[bold]", "[/]", "'", '"', "<b>",
    "&", ":", ";", "a" * 120, "\u0958" * 120, "\u1100\u1161" * 130, "x" * 256, "x" * 257,
    "e\u0301" * 256, "\u0301", "\ufe0f", "0", "-1", "١", "\U0010ffff",
]  # fmt: skip
VALUES: list[Any] = [
    "",
    " ",
    "  padded ",
    0,
    7,
    -1,
    3.0,
    2.5,
    1e300,
    10**400,
    True,
    None,
    [],
    {},
    ["a"],
    {"a": 1},
]
TIMES: list[Any] = [
    None, "", 0, 1.5, -1, "2026-01-31", "2026-01-31T12:00:00Z", "2026-01-31T12:00:00+05:30",
    "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59-14:00",
    253_402_300_799, 253_402_300_800, "yesterday", True, [],
]  # fmt: skip


def _text(rng: random.Random) -> str:
    return "".join(rng.choice(PIECES) for _ in range(rng.choice([1, 1, 1, 2, 2, 3, 4])))


def _value(rng: random.Random) -> Any:
    return rng.choice(VALUES) if rng.random() < 0.2 else _text(rng)


def _fields(rng: random.Random) -> dict[str, Any]:
    """What a producer may say of one image, most of it strange."""
    said: dict[str, Any] = {"class": _value(rng) if rng.random() < 0.6 else "plain"}
    if rng.random() < 0.7:
        said["id"] = _value(rng)
    if rng.random() < 0.5:
        said["attributes"] = {
            _text(rng): rng.choice([_value(rng), "y" * rng.choice([3, 513, 16_380, 16_385])])
            for _ in range(rng.choice([0, 1, 1, 2, 70]))
        }
    if rng.random() < 0.3:
        said["time"] = rng.choice(TIMES)
    return said


@dataclass
class Service:
    """A stream root of its own, and the API over it."""

    stream: TinyStream
    replica: Replica
    api: LocalApi

    def push(self, *items: dict[str, Any]) -> Any:
        body = {"items": [{"image": base64.b64encode(IMAGE).decode(), **item} for item in items]}
        return self.api.post(
            "/v1/items", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
        )

    def index(self) -> None:
        """Index what was pushed, and wait until the replica shows it."""
        self.stream.ingest()
        deadline = time.monotonic() + 60
        while self.replica.served().sequence < self.stream.sequence:
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    stream = TinyStream(tmp_path)
    replica = Replica(stream.root, OPTIONS)
    replica.start()
    with LocalApi(create_app(replica, OPTIONS)) as api:
        yield Service(stream, replica, api)
    replica.close()
    stream.close()


def _as_tar_row(folder: Path, said: dict[str, Any]) -> RawItem | RowProblem:
    """What the reader makes of the same JSON values in a WebDataset tar, which no door has looked at."""
    folder.mkdir(exist_ok=True)
    note = {"class_name": said["class"], **{k: v for k, v in said.items() if k in ("attributes", "time")}}
    note |= {"item_id": said["id"]} if said.get("id") is not None else {}
    with tarfile.open(folder / "s.tar", "w") as tar:
        for name, data in (("0.png", IMAGE), ("0.json", json.dumps(note).encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (ref,) = DirectorySource(folder).poll(set())
    (row,) = read_shard(ref)
    if isinstance(row, RawItem):  # a tar says which member an item came from; a push has none
        row.attributes.pop("path", None)
    return row


def _pushed_rows(stream: TinyStream, shard: str) -> list[RawItem | RowProblem]:
    refs = [ref for ref in DirectorySource(stream.inbox).poll(set()) if ref.name == shard]
    return list(read_shard(refs[0]))


@pytest.mark.parametrize("seed", range(2))
def test_the_door_takes_what_the_reader_takes_and_all_show_it_alike(
    service: Service, tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    shown: dict[str, tuple[Any, ...]] = {}
    taken = 0
    for number in range(100):
        said = _fields(rng)
        answer, oracle = service.push(said), _as_tar_row(tmp_path / "oracle", said)
        assert (answer.status_code == 202) == isinstance(oracle, RawItem), (said, answer.text, oracle)
        if answer.status_code != 202:
            assert answer.status_code == 422, (said, answer.text)
            continue
        taken += 1
        receipt = answer.json()
        (row,) = _pushed_rows(service.stream, receipt["shard"])
        assert isinstance(row, RawItem), (said, row)
        assert isinstance(oracle, RawItem)
        assert receipt["ids"] == [row.item_id]
        assert (row.class_name, row.attributes, row.time) == (
            oracle.class_name,
            oracle.attributes,
            oracle.time,
        )
        if said.get("id") is not None:
            assert row.item_id == oracle.item_id
        shown[row.item_id] = (row.class_name, row.attributes, row.time)
        if number % 50 == 49:
            service.index()
    service.index()
    assert 20 < taken < 95, "the inputs are to be mixed"
    assert service.stream.writer.store.quarantine_rows().num_rows == 0
    for item_id, (class_name, attributes, _) in shown.items():
        found = service.api.get(f"/v1/items/{quote(item_id, safe='')}")
        assert found.status_code == 200, (item_id, found.text)
        body = found.json()
        assert (body["id"], body["class"], body["attributes"]) == (item_id, class_name, attributes)


@pytest.mark.parametrize(
    "name",
    ["ca\u202et", "\u2028mid\u2028dle", "x\x85y", "\x9bz", "a\u200bb", "\ufeffcat", "nul\0", "x" * 257],
)
def test_a_name_that_the_reader_would_refuse_is_refused_at_the_door(service: Service, name: str) -> None:
    for field in ("class", "id"):
        assert service.push({"class": "oak", field: name}).status_code == 422, field
    assert service.push({"class": "oak", "attributes": {name: "x"}}).status_code == 422


def test_the_answer_names_the_ids_as_they_are_stored(service: Service) -> None:
    answer = service.push({"class": " e\u0301tude\n", "id": " cafe\u0301/1 "})
    assert answer.json()["ids"] == ["café/1"]
    service.index()
    for asked in ("café/1", "cafe\u0301/1", " café/1 "):
        assert service.api.get(f"/v1/items/{quote(asked, safe='')}").json()["class"] == "étude"
    found = service.api.post("/v1/search", params={"class": "e\u0301tude"}, content=IMAGE, headers={"content-type": "image/png"})  # fmt: skip  # noqa: E501
    assert [hit["id"] for hit in found.json()["hits"]] == ["café/1"]


@pytest.mark.parametrize("pair", [("café", "cafe\u0301"), ("a", " a "), ("7", 7), ("Å", "\u212b")])
def test_ids_that_become_equal_are_refused_together(service: Service, pair: tuple[Any, Any]) -> None:
    answer = service.push({"class": "oak", "id": pair[0]}, {"class": "oak", "id": pair[1]})
    assert (answer.status_code, answer.json()["error"]) == (422, "duplicate_id")
    assert not list(service.stream.inbox.glob("*.parquet"))


def test_an_id_that_another_image_of_the_push_would_get_is_refused(service: Service) -> None:
    headers = {"content-type": "application/json", "idempotency-key": "k"}
    image = base64.b64encode(IMAGE).decode()
    name = service.api.post(
        "/v1/items", json={"items": [{"image": image, "class": "oak"}]}, headers=headers
    ).json()["ids"][0]
    shard = name.rpartition("/")[0]
    headers["idempotency-key"] = "k"
    items = [{"image": image, "class": "oak", "id": f"{shard}/1"}, {"image": image, "class": "oak"}]
    answer = service.api.post("/v1/items", json={"items": items}, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (422, "duplicate_id")


NASTY_IDS = [
    "a/thumbnail", "thumbnail", "/thumbnail", "a", "a/b/c", "/absolute/1", "folder/", "100%",
    "50%2F", "what?", "#1", "a+b", "a b", "Größe/ö", "日本/語", "..%2f..", "../up", "./here",
    "a;b=c", "a\\b", "[x]", "x" * 256, "👩\u200d🔬", '"', "&amp;", ":",
]  # fmt: skip


def test_every_id_is_found_at_its_own_address(service: Service) -> None:
    assert service.push(*[{"class": f"{i[:99]} class", "id": i} for i in NASTY_IDS]).status_code == 202
    service.index()
    with Client("http://127.0.0.1", transport=in_process(service.api.app)) as client:
        for item_id in NASTY_IDS:
            assert client.get(item_id).item_id == item_id
            picture_of = service.api.get(f"/v1/items/{quote(item_id, safe='')}/thumbnail")
            assert picture_of.headers["content-type"].startswith("image/"), item_id
        left_as_it_is = service.api.get("/v1/items/a/thumbnail")
        assert left_as_it_is.headers["content-type"].startswith("image/"), (
            "without quotes: the picture of `a`"
        )
        for name in ("..", ".", ""):
            with pytest.raises(ServiceError, match="404"):
                client.get(name)


@pytest.mark.parametrize("name", [".", "..", " .. "])
def test_dots_alone_are_no_name(service: Service, name: str) -> None:
    """No client can put them into an address: they would lead to another one."""
    for field in ("class", "id"):
        assert service.push({"class": "oak", field: name}).status_code == 422


def test_an_attribute_may_be_empty_and_is_found_by_it(service: Service) -> None:
    assert (
        service.push({"class": "oak", "id": "1", "attributes": {"note": "", "side": "left"}}).status_code
        == 202
    )
    service.push({"class": "oak", "id": "2", "attributes": {"note": "two\nlines"}})
    service.index()
    assert service.api.get("/v1/items/1").json()["attributes"] == {"note": "", "side": "left"}
    for value, wanted in (("", ["1"]), ("two\nlines", ["2"])):
        found = service.api.post(
            "/v1/search",
            params={"attribute": f"note:{value}"},
            content=IMAGE,
            headers={"content-type": "image/png"},
        )
        assert [hit["id"] for hit in found.json()["hits"]] == wanted


@pytest.mark.parametrize("names", [("é", "e\u0301"), ("a", " a"), ("", "b"), (" ", "b")])
def test_attribute_names_that_are_blank_or_become_equal_are_refused(
    service: Service, names: tuple[str, str]
) -> None:
    assert service.push({"class": "oak", "attributes": dict.fromkeys(names, "x")}).status_code == 422


def test_landing_refuses_what_no_reader_takes_and_lands_the_rest_as_it_will_be_read(tmp_path: Path) -> None:
    bad = NewItem(IMAGE, "oak", "a\u202eb")
    with pytest.raises(RowError, match=r"item 1.*U\+202E"):
        land_items(tmp_path, "s", [NewItem(IMAGE, "oak"), bad])
    with pytest.raises(RowError, match="came before"):
        land_items(tmp_path, "s", [NewItem(IMAGE, "oak", "é"), NewItem(IMAGE, "oak", "e\u0301")])
    assert not list(tmp_path.glob("*.parquet"))
    land_items(tmp_path, "s", [NewItem(IMAGE, " oak ", "e\u0301", {" side ": ""})])
    (ref,) = DirectorySource(tmp_path).poll(set())
    (row,) = read_shard(ref)
    assert isinstance(row, RawItem)
    assert (row.class_name, row.item_id, row.attributes) == (
        "oak",
        unicodedata.normalize("NFC", "é"),
        {"side": ""},
    )


def test_the_answer_names_the_wrong_name(service: Service) -> None:
    with Client("http://127.0.0.1", transport=in_process(service.api.app)) as client:
        with pytest.raises(ServiceError, match="class: invisible or control character U"):
            client.push([NewImage(IMAGE, "a\u200bb")])
        assert client.push([NewImage(IMAGE, "oak", "n\u0303", {"k": ""})]).ids == ("ñ",)


@pytest.mark.parametrize(
    "body",
    [
        '{"items": [{"image": "IMG", "class": "oak", "class": "elm"}]}',
        '{"items": [], "items": [{"image": "IMG", "class": "oak"}]}',
        '{"items": [{"image": "IMG", "class": "oak", "cl\\u0061ss": "elm"}]}',
        '{"items": [{"image": "IMG", "class": "oak", "attributes": {"a" : "1", "a" : "1"}}]}',
        '\ufeff{"items": [{"image": "IMG", "class": "oak", "id": "a", "id": null}]}',
    ],
)
def test_a_body_that_says_one_thing_twice_is_refused(service: Service, body: str) -> None:
    """Its last value would count here, and its first one elsewhere."""
    content = body.replace("IMG", base64.b64encode(IMAGE).decode()).encode()
    answer = service.api.post("/v1/items", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, "comes twice" in answer.json()["detail"]) == (400, True), answer.text
    assert not list(service.stream.inbox.glob("*.parquet"))


def test_text_that_looks_like_a_second_name_is_none(service: Service) -> None:
    attributes = {"said": '"class": "elm", "a": 1', "a": '\\":', "b": '":"'}
    assert service.push({"class": "oak", "id": "x", "attributes": attributes}).status_code == 202
    service.index()
    assert service.api.get("/v1/items/x").json()["attributes"] == attributes


@pytest.mark.parametrize("twice", ["class", "id", "time", "attributes", None])
def test_a_form_that_says_one_thing_twice_is_refused(service: Service, twice: str | None) -> None:
    fields = [("class", "oak"), ("id", "a"), ("time", "2026-01-31"), ("attributes", '{"a": "1"}')]
    fields += [field for field in fields if field[0] == twice]
    if twice is None:
        fields[-1] = ("attributes", '{"a": "1", "a": "2"}')
    parts = [(name, (None, value)) for name, value in fields]
    answer = service.api.post("/v1/items", files=[*parts, ("image", ("a.png", IMAGE))])
    assert answer.status_code == 400, answer.text
    assert not list(service.stream.inbox.glob("*.parquet"))


@pytest.mark.parametrize(
    "asked",
    ["k=1&k=5", "from=2026-01-01&from=2026-01-01", "attribute=a:1&attribute=a:2", "min_seq=1&min_seq=0"],
)
def test_an_address_that_says_one_thing_twice_is_refused(service: Service, asked: str) -> None:
    headers = {"content-type": "image/png"}
    answer = service.api.post(f"/v1/search?{asked}", content=IMAGE, headers=headers)
    assert (answer.status_code, "comes twice" in answer.json()["detail"]) == (422, True)
    fine = service.api.post(
        "/v1/search?class=a&class=b&attribute=a:1&attribute=b:1", content=IMAGE, headers=headers
    )
    assert fine.status_code == 200, fine.text


@pytest.mark.parametrize("chosen", [[], 0, False, ""])
def test_a_filter_that_is_none_does_not_pass_for_no_filter(service: Service, chosen: Any) -> None:
    answer = service.api.post("/v1/search", json={"vector": [1.0] * 16, "filter": chosen})
    assert (answer.status_code, answer.json()["error"]) == (422, "bad_filter")
