"""A request is taken for what it says or refused: by no other name, no value not meant, no half of a header."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi

REPLACED = "\ufffd"
PNG = b"\x89PNG"
JSON = {"content-type": "application/json"}
VECTOR = json.dumps({"vector": [1.0] * 8}).encode()


@pytest.fixture
def backend() -> FakeBackend:
    """With items and a class whose names are what bytes that are no text are often replaced by."""
    backend = FakeBackend()
    backend.ids[0], backend.ids[1] = REPLACED, f"x{REPLACED}{REPLACED}"
    return backend


@pytest.fixture
def api(backend: FakeBackend) -> Iterator[LocalApi]:
    with LocalApi(create_app(backend, ServiceOptions())) as api:
        yield api


def refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    body: dict[str, Any] = answer.json()
    assert (answer.status_code, set(body)) == (status, {"error", "detail", "remedy"}), answer.text
    return body


NO_TEXT = ["%FF", "x%C0%AF", "x%ED%A0%80", "x%FF%FE", "x%f8%80%80%80%80", "%C3", "%C3%28", "%80"]


@pytest.mark.parametrize("written", NO_TEXT)
def test_bytes_that_are_no_text_name_nothing(api: LocalApi, backend: FakeBackend, written: str) -> None:
    """Decoded as frameworks do it, they would be the name of another item, and delete it."""
    for path in ("items", "classes", "shards"):
        refused(api.delete(f"/v1/{path}/{written}"), 400)
    for path in (f"items/{written}", f"items/{written}/thumbnail", f"versions/{written}/diff/head"):
        refused(api.get(f"/v1/{path}"), 400)
    refused(api.post(f"/v1/versions/{written}/rollback"), 400)
    refused(api.get(f"/v1/classes?named={written}"), 400)
    answer = api.post(f"/v1/search?class={written}", content=PNG, headers={"content-type": "image/png"})
    refused(answer, 400)
    assert not backend.asked
    assert api.get("/v1/items/%EF%BF%BD").json()["id"] == REPLACED, "that character itself is a name"


@pytest.mark.parametrize("name", ["content-type", "Content-Encoding", "idempotency-key"])
def test_a_header_of_which_one_counts_comes_once(api: LocalApi, name: str) -> None:
    """Which one differs: the first for some readers, the last for others."""
    headers = [("content-type", "application/json"), (name, "identity"), (name, "identity")]
    for path in ("/v1/search", "/v1/items"):
        assert name.lower() in refused(api.post(path, content=VECTOR, headers=headers), 400)["detail"]


ROUTES = [
    ("GET", "/v1/classes", "limit=5"),
    ("GET", "/v1/projection", "points=5"),
    ("GET", "/v1/quarantine", "limit=5"),
    ("GET", "/v1/maps?from=v0000-aa", "to=head"),
    ("GET", "/v1/versions", ""),
    ("GET", "/v1/versions/head/diff/head", ""),
    ("GET", "/v1/items/shard-1/6", ""),
    ("GET", "/v1/items/shard-1/6/thumbnail", ""),
    ("DELETE", "/v1/items/shard-1/6", ""),
    ("DELETE", "/v1/classes/c1", ""),
    ("DELETE", "/v1/shards/shard-1", ""),
    ("POST", "/v1/versions/head/rollback", "relearn=true"),
    ("POST", "/v1/tasks/task-0002/relearn", "anyway=true"),
    ("POST", "/v1/items", ""),
    ("POST", "/v1/embed", ""),
]


@pytest.mark.parametrize(("method", "path", "known"), ROUTES)
def test_a_parameter_is_read_once_or_refused(
    api: LocalApi, backend: FakeBackend, method: str, path: str, known: str
) -> None:
    """`?relern=false` must not move the head as `?relearn=true` does."""
    mark = "&" if "?" in path else "?"
    name = known.partition("=")[0] or "limit"
    misspelt = refused(api.request(method, f"{path}{mark}{name}x=1"), 422)
    assert (misspelt["error"], f"{name}x" in misspelt["detail"]) == ("unknown_field", True)
    if known:
        assert refused(api.request(method, f"{path}{mark}{known}&{known}"), 422)["error"] == "twice"
        assert name in misspelt["remedy"]
    assert not backend.asked
    if known:
        assert api.request(method, f"{path}{mark}{known}").status_code in (200, 202)


@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/batch"])
def test_what_a_json_body_says_is_not_said_in_the_address(api: LocalApi, path: str) -> None:
    answer = api.post(f"{path}?k=1", content=VECTOR, headers=JSON)
    assert "put it into the body" in refused(answer, 422)["remedy"]


@pytest.mark.parametrize("asked", ["k=%D9%A1", "k=%C2%B2", "k=+1", "k=1_0", "k=", "attribute=colour", "K=1"])
def test_a_number_is_ascii_and_an_attribute_has_a_value(api: LocalApi, asked: str) -> None:
    refused(api.post(f"/v1/search?{asked}", content=PNG, headers={"content-type": "image/png"}), 422)


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
def test_a_label_is_json_by_its_content_type(api: LocalApi, backend: FakeBackend, kind: str) -> None:
    answer = api.request(
        "PATCH", "/v1/items/shard-1/6", content=b'{"class": "a"}', headers={"content-type": kind}
    )
    refused(answer, 415)
    assert not backend.pushed


def test_a_long_name_of_a_form_field_is_not_repeated_whole(api: LocalApi) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="' + b"n\x1b" * 1500 + b'"\r\n\r\n\xff\r\n--x--\r\n'
    answer = api.post("/v1/items", content=form, headers={"content-type": "multipart/form-data; boundary=x"})
    assert len(refused(answer, 400)["detail"]) < 500


def test_the_page_asks_with_no_parameter_that_is_refused(api: LocalApi) -> None:
    """What its scripts write into addresses, one of each kind."""
    for path in (
        "/v1/classes?limit=1000&since=2026-01-01T00:00:00.000Z",
        "/v1/classes?limit=1000&learnt=false",
        "/v1/classes?limit=20&named=a",
        "/v1/projection?errors=true",
        "/v1/projection?attribute=side",
        "/v1/quarantine?limit=50",
    ):
        assert api.get(path).status_code == 200, path
