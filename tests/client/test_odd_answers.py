"""The client with values that no request can carry, and with answers of something that is no service of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from stream_odml.client import AsyncClient, Client, NewImage, ServiceError, ServiceUnreachable, WrongStream
from stream_odml.config.service import ServiceOptions
from stream_odml.notebook.results import Item, Items

HIT = b'{"id": "a", "class": "b", "score": 1, "version": "v", "attributes": {}, "time": "yesterday"}'
ODD = [
    b"",
    b"<html>",
    b"[]",
    b"null",
    b"5",
    b'"\xff"',
    b"[" * 100_000,
    b"1" * 5000,
    b'{"version": "v"}',
    b'{"version": "v", "sequence": 1, "hits": "abc"}',
    b'{"version": "v", "sequence": 1, "hits": [' + HIT + b"]}",
]


def answering(status: int, content: bytes, **headers: str) -> Callable[[httpx.Request], httpx.Response]:
    return lambda request: httpx.Response(status, content=content, headers=headers)


@pytest.mark.parametrize("content", ODD, ids=range(len(ODD)))
@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_answer_of_something_else_is_a_client_error(status: int, content: bytes) -> None:
    transport = httpx.MockTransport(answering(status, content))
    client = Client("http://x", transport=transport, retries=0)
    with client, pytest.raises(ServiceError, match="check the address") as error:
        client.search_vector([1.0])
    assert (error.value.status, error.value.error) == (status, "unexpected_answer")

    async def ask() -> None:
        async with AsyncClient("http://x", transport=transport, retries=0) as client:
            await client.search_vector([1.0])

    with pytest.raises(ServiceError, match="check the address"):
        asyncio.run(ask())


def test_an_error_whose_fields_are_no_text_is_unexpected() -> None:
    content = b'{"error": 1, "detail": {"a": 1}, "remedy": []}'
    client = Client("http://x", transport=httpx.MockTransport(answering(422, content)))
    with client, pytest.raises(ServiceError, match="unexpected_answer"):
        client.status()


def test_an_answer_that_is_not_compressed_as_it_says_is_none() -> None:
    transport = httpx.MockTransport(answering(200, b"xx", **{"content-encoding": "gzip"}))
    with Client("http://x", transport=transport, retries=0) as client, pytest.raises(ServiceUnreachable):
        client.status()


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://[::1", "http://x\n", "//x", "http://x/?a=b",
                                 "http://u:geheim@x:y"])  # fmt: skip
def test_what_is_no_address_is_refused_at_once(url: str) -> None:
    for made in (Client, AsyncClient):
        with pytest.raises(ValueError, match="no address of a service") as error:
            made(url)
        assert "geheim" not in str(error.value)


def test_a_password_of_an_address_is_in_no_error() -> None:
    other = answering(200, b"{}", **{"X-Stream-Id": "other"})
    client = Client("http://u:geheim@x", stream="mine", transport=httpx.MockTransport(other))
    with client, pytest.raises(WrongStream, match="http://x, expected mine") as error:
        client.status()
    assert "geheim" not in str(error.value)


SENT: list[Callable[[Client], Any]] = [
    lambda client: client.get("\ud800"),
    lambda client: client.delete_class("a\udfff"),
    lambda client: client.label("a", "\udfff"),
    lambda client: client.push([NewImage(b"x", "\udfff")]),
]


@pytest.mark.parametrize("ask", SENT, ids=range(len(SENT)))
def test_a_lone_surrogate_is_named(ask: Callable[[Client], Any]) -> None:
    transport = httpx.MockTransport(lambda request: pytest.fail("it was sent"))
    with Client("http://x", transport=transport) as client, pytest.raises(ValueError, match="lone surrogate"):
        ask(client)


UNSENT: list[tuple[Callable[[Client], Any], str]] = [
    (lambda client: client.search_vector(np.array([1, np.nan])), "holds NaN"),
    (lambda client: client.search_vector([1e300, 1.0]), "holds NaN"),
    (lambda client: client.search_vector([1.0], k=object()), "object .* cannot be sent"),  # type: ignore[arg-type]
    (lambda client: client.search_vector([1.0], k=float("nan")), "JSON"),  # type: ignore[arg-type]
    (lambda client: client.get(5), "5 is no text"),  # type: ignore[arg-type]
    (lambda client: client.rollback(b"v1"), "b'v1' is no text"),  # type: ignore[arg-type]
    (lambda client: client.classes(since="yesterday"), "'yesterday' is no time"),  # type: ignore[arg-type]
    (lambda client: client.search_vector([1.0], after=3), "3 is no time"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("ask", "said"), UNSENT, ids=range(len(UNSENT)))
def test_what_cannot_be_sent_is_named(ask: Callable[[Client], Any], said: str) -> None:
    transport = httpx.MockTransport(lambda request: pytest.fail("it was sent"))
    with (
        Client("http://x", transport=transport) as client,
        pytest.raises((ValueError, TypeError), match=said),
    ):
        ask(client)


def test_numbers_of_numpy_are_numbers() -> None:
    sent: list[Any] = []

    def note(request: httpx.Request) -> httpx.Response:
        sent.append((request.headers["content-type"], json.loads(request.content)))
        return httpx.Response(200, json={"version": "v", "sequence": 1, "hits": []})

    with Client("http://x", transport=httpx.MockTransport(note)) as client:
        k: Any = np.int64(3)
        client.search_vector(np.array([0.5, 1]), k=k, attributes={"lot": np.str_("é")})
    assert sent == [
        ("application/json", {"vector": [0.5, 1.0], "k": 3, "filter": {"attributes": {"lot": "é"}}})
    ]


@pytest.mark.parametrize("value", ["geheim\nx", "gehe\x00im", "пароль-geheim", "geheim\x7f"])
def test_what_no_header_can_carry_is_refused_and_not_repeated(value: str, tmp_path: Path) -> None:
    transport = httpx.MockTransport(lambda request: pytest.fail("it was sent"))
    makers: list[Callable[[], Any]] = [
        lambda: Client("http://x", token=value),
        lambda: Client("http://x", stream=value, transport=transport).status(),
        lambda: Client("http://x", transport=transport).push([], key=value),
    ]
    (tmp_path / "token").write_text(value)
    makers.append(ServiceOptions(token_file=tmp_path / "token").tokens)
    makers.append(ServiceOptions(read_token_file=tmp_path / "token").tokens)
    for make in makers:
        with pytest.raises(ValueError, match="ASCII") as error:
            make()
        assert "geheim" not in str(error.value)


def test_a_token_may_end_with_the_line_break_of_its_file() -> None:
    seen: list[str] = []

    def note(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers["authorization"])
        return httpx.Response(200, content=b"{}")

    with Client("http://x", token=" secret\n", transport=httpx.MockTransport(note)) as client:
        client.status()
    assert seen == ["Bearer secret"]


def test_a_notebook_shows_names_and_obeys_none() -> None:
    name = "\x1b]0;x\x07\u202e<script>"
    items = Items((Item(name, name, "s", name, None, {}, 0.5),), name)
    for shown in (repr(items), items._repr_html_()):
        assert not {"\x1b", "\x07", "\u202e"} & set(shown)
    assert "<script>" not in items._repr_html_()
