"""Seam 42: one question has one answer, whoever asks it: a notebook of a root, the client, a form or a JSON body. What
nothing would read is refused, and never passes for a question without it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import stream_odml as so
from stream_odml.client import calls
from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream, picture

OPTIONS = ServiceOptions(poll_s=60.0)
COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.fixture
def stream(tmp_path: Path) -> Iterator[TinyStream]:
    stream = TinyStream(tmp_path)
    items = [
        NewItem(picture(at), name, f"item/{at}", {COMPOSED: COMPOSED}, datetime(1960 + at, 1, 1, tzinfo=UTC))
        for at, name in enumerate([COMPOSED, "c", "a", "owl"])
    ]
    land_items(stream.inbox, "one", items)
    stream.ingest()
    yield stream
    stream.close()


@pytest.fixture
def api(stream: TinyStream) -> Iterator[LocalApi]:
    replica = Replica(stream.root, OPTIONS)
    replica.start()
    with LocalApi(create_app(replica, OPTIONS)) as api:
        yield api
    replica.close()


def ids(items: Any) -> list[str]:
    return sorted(item.item_id for item in items)


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ({"classes": [DECOMPOSED]}, ["item/0"]),
        ({"classes": "owl"}, ["item/3"]),
        ({"classes": "ca"}, []),
        ({"attributes": {DECOMPOSED: DECOMPOSED}}, ["item/0", "item/1", "item/2", "item/3"]),
        ({"after": "1962-01-01"}, ["item/2", "item/3"]),
        ({"before": date(1962, 1, 1)}, ["item/0", "item/1"]),
        ({"k": np.int64(4)}, ["item/0", "item/1", "item/2", "item/3"]),
        ({"k": 10**15}, ["item/0", "item/1", "item/2", "item/3"]),
    ],
)
def test_a_notebook_finds_what_the_service_would(
    stream: TinyStream, question: dict[str, Any], found: list[str]
) -> None:
    assert ids(so.open(stream.root).search(picture(0), **question)) == found


@pytest.mark.parametrize(
    "question",
    [
        {"k": 1.5},
        {"k": "5"},
        {"k": 0},
        {"classes": [3]},
        {"attributes": {"side": 3}},
        {"attributes": {"side": None}},
        {"after": "soon"},
        {"before": -1},
    ],
)
def test_what_is_no_question_is_refused_in_words(stream: TinyStream, question: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"k is|are text|after|before"):
        so.open(stream.root).search(picture(0), **question)


@pytest.mark.parametrize("mode", ["CMYK", "F", "I", "YCbCr", "LAB", "I;16", "P", "LA", "1"])
def test_an_image_of_any_mode_is_searched_for(stream: TinyStream, mode: str) -> None:
    assert len(so.open(stream.root).search(Image.new(mode, (20, 20)), 1)) == 1


def test_an_image_keeps_its_colours_whatever_its_mode(stream: TinyStream) -> None:
    opened = so.open(stream.root)
    plain = Image.fromarray(np.kron(np.arange(12).reshape(2, 2, 3) * 20, np.ones((8, 8, 1))).astype(np.uint8))
    expected = [item.score or 0 for item in opened.search(plain, 4)]
    for mode in ("CMYK", "YCbCr"):
        found = opened.search(plain.convert(mode), 4)
        assert [item.score or 0 for item in found] == pytest.approx(expected, abs=0.02)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_bytes_of_any_kind_are_an_image(stream: TinyStream, kind: type) -> None:
    assert ids(so.open(stream.root).search(kind(picture(1)), 1)) == ["item/1"]


@pytest.mark.parametrize("bad", [np.zeros(16), np.full(16, np.nan), np.full(16, 1e30), np.ones(16, complex)])
def test_a_vector_that_a_service_refuses_is_refused(stream: TinyStream, bad: Any) -> None:
    with pytest.raises(ValueError, match=r"direction|finite|NaN|cannot search"):
        so.open(stream.root).search(bad)


def test_one_class_is_one_class_for_the_client_too() -> None:
    assert calls.search_image(b"x", classes="owl").json["filter"] == {"class": ["owl"]}
    assert calls.search_image(b"x", classes=("owl", "a")).json["filter"] == {"class": ["owl", "a"]}


def form(parts: dict[str, bytes]) -> tuple[bytes, dict[str, str]]:
    body = b"".join(
        b'--b\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n' % (name.encode(), value)
        for name, value in parts.items()
    )
    return body + b"--b--\r\n", {"content-type": "multipart/form-data; boundary=b"}


@pytest.mark.parametrize("path", ["/v1/search", "/v1/embed"])
@pytest.mark.parametrize("field", ["k", "class", "klass", "Image"])
def test_a_field_of_a_form_that_nothing_reads_is_refused(api: LocalApi, path: str, field: str) -> None:
    whole, headers = form({"image": picture(1)})
    assert api.request("POST", path, content=whole, headers=headers).status_code == 200
    body, headers = form({"image": picture(1), field: b"1"})
    answer = api.request("POST", path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]) == (422, "unknown_field")


def test_hits_of_an_answer_are_bounded_however_the_image_came() -> None:
    options = ServiceOptions(max_k=10_000)
    with LocalApi(create_app(FakeBackend(), options)) as api:
        asked = "/v1/search?k=10000&group_by=class&group_size=100"
        raw = api.request("POST", asked, content=picture(0), headers={"content-type": "image/png"})
        body = {"image": base64.b64encode(picture(0)).decode(), "k": 10_000}
        said = api.request("POST", "/v1/search", json={**body, "group_by": "class", "group_size": 100})
    for answer in (raw, said):
        assert (answer.status_code, answer.json()["error"]) == (422, "too_many_hits")


@pytest.mark.parametrize("micros", [2_192_111_178_456_547, -1_122_225_354_198_094])
def test_a_time_is_a_time_to_the_microsecond(stream: TinyStream, micros: int) -> None:
    """A float of seconds makes another one of one in eighty."""
    tick = timedelta(microseconds=1)
    time = datetime(1970, 1, 1, tzinfo=UTC) + micros * tick
    items = [NewItem(picture(9 + at), "hen", f"hen/{at}", {}, time + at * tick) for at in (-1, 0, 1)]
    land_items(stream.inbox, "two", items)
    stream.ingest()
    opened = so.open(stream.root)
    assert ids(opened.search(picture(1), classes="hen", after=time)) == ["hen/0", "hen/1"]
    assert ids(opened.search(picture(1), classes="hen", before=time)) == ["hen/-1"]
