"""Seam 01: streams on one machine never mix: every answer names its stream, and one meant for another is refused.

Ports and proxies belong to one session. A stream that has lost its replica answers nothing, or with an error of its
own proxy; never does another stream answer in its place, or take its pushes.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from stream_odml.client import Client, ClientError, NewImage, WrongStream
from stream_odml.cluster.runtime import free_port
from stream_odml.cluster.serve import ServiceDown, _wait_until_ready
from stream_odml.cluster.session_ports import BLOCK_PORTS, PortBlock
from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from stream_odml.store.store import Store
from tests.seams.sessions import served
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream, picture

OWN = "11111111-1111-4111-8111-111111111111"
OTHER = "22222222-2222-4222-8222-222222222222"
ASKED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "json": ("POST", "/v1/search", {"json": {"vector": [1.0] * 8}}),
    "push": ("POST", "/v1/items", {"json": {"items": [{"image": "iVBORw==", "class": "a"}]}}),
    "probe": ("GET", "/healthz", {}),
    "page": ("GET", "/", {}),
    "nothing there": ("GET", "/v1/nowhere", {}),
    "bad body": ("POST", "/v1/search", {"content": b"{", "headers": {"content-type": "application/json"}}),
}


@pytest.mark.parametrize("name", ASKED)
def test_every_answer_names_its_stream(name: str) -> None:
    method, path, more = ASKED[name]
    with LocalApi(create_app(FakeBackend(stream=OWN), ServiceOptions())) as api:
        answer = api.request(method, path, **more)
    assert answer.headers.get_list("x-stream-id") == [OWN]


def test_a_refusal_for_want_of_a_token_names_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_ODML_TOKEN", "secret")
    with LocalApi(create_app(FakeBackend(stream=OWN), ServiceOptions())) as api:
        answer = api.get("/v1/status")
    assert (answer.status_code, answer.headers["x-stream-id"]) == (401, OWN)


def test_a_push_for_another_stream_is_refused_before_it_is_read() -> None:
    backend = FakeBackend(stream=OWN)
    method, path, more = ASKED["push"]
    with LocalApi(create_app(backend, ServiceOptions())) as api:
        refused = api.request(method, path, headers={"X-Stream-Id": OTHER}, **more)
        assert (refused.status_code, refused.json()["error"]) == (421, "wrong_stream")
        assert not backend.pushed
        taken = api.request(method, path, headers={"X-Stream-Id": OWN}, **more)
    assert (taken.status_code, taken.json()["stream"]) == (202, OWN)


def test_before_the_root_is_read_nothing_that_names_a_stream_is_taken() -> None:
    with LocalApi(create_app(FakeBackend(stream=None), ServiceOptions())) as api:
        assert api.get("/healthz").status_code == 200
        assert api.get("/healthz", headers={"X-Stream-Id": OWN}).status_code == 503


def answers(*headers: dict[str, str], status: int = 200) -> httpx.MockTransport:
    left = list(headers)
    return httpx.MockTransport(lambda request: httpx.Response(status, json={}, headers=left.pop(0)))


def test_a_client_keeps_to_the_stream_that_answered_first() -> None:
    with Client(transport=answers({"X-Stream-Id": OWN}, {"X-Stream-Id": OTHER})) as client:
        client.status()
        with pytest.raises(WrongStream, match=f"stream {OTHER} answers .* expected {OWN}"):
            client.status()


@pytest.mark.parametrize("headers", [{"X-Stream-Id": OTHER}, {}])
def test_a_client_that_knows_its_stream_believes_no_other(headers: dict[str, str]) -> None:
    with Client(transport=answers(headers), stream=OWN) as client, pytest.raises(WrongStream):
        client.status()


def test_a_client_names_the_stream_that_it_expects_and_tells_a_proxy_s_failure_as_it_is() -> None:
    seen: list[str | None] = []

    def proxy(request: httpx.Request) -> httpx.Response:
        seen.append(request.headers.get("x-stream-id"))
        return httpx.Response(500, text="Internal Server Error")

    with (
        Client(transport=httpx.MockTransport(proxy), stream=OWN, retries=0) as client,
        pytest.raises(ClientError, match="500 unexpected_answer") as failed,
    ):
        client.status()
    assert not isinstance(failed.value, WrongStream)
    assert seen == [OWN]


def test_the_id_is_made_with_the_root_and_stays(tmp_path: Path) -> None:
    first, second = (str(tmp_path / name) for name in ("a", "b"))
    made = Store.create(first, 4).stream_id
    assert Store.create(first, 4).stream_id == Store.open(first).stream_id == Store.id_of(first) == made
    assert Store.create(second, 4).stream_id != made


def test_a_service_is_not_ready_while_another_stream_answers_at_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(200, headers={"x-stream-id": OTHER}))
    with pytest.raises(ServiceDown, match=f"stream {OTHER} answers, not {OWN}"):
        _wait_until_ready("http://127.0.0.1:8000", OWN, 5.0)
    monkeypatch.setattr(httpx, "get", lambda url, **_: httpx.Response(200))
    with pytest.raises(ServiceDown, match="not ready within"):
        _wait_until_ready("http://127.0.0.1:8000", OWN, 0.3)


def test_two_sessions_share_no_port() -> None:
    with contextlib.closing(PortBlock()) as one, contextlib.closing(PortBlock()) as two:
        assert abs(one.first - two.first) >= BLOCK_PORTS
        ports = [int(port) for block in (one, two) for port in block.environment().values()]
        assert len(set(ports)) >= len(ports) - 2  # a range ends where the next begins


def test_a_block_in_which_anything_still_listens_is_left_alone() -> None:
    with contextlib.closing(PortBlock()) as block:
        first = block.first
    with socket.socket() as proxy:  # as Serve's fallback proxy binds it
        proxy.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        proxy.bind(("127.0.0.1", first + 100))
        with contextlib.closing(PortBlock()) as next_block:
            assert next_block.first != first


@pytest.mark.slow
@pytest.mark.ray
def test_a_stream_that_loses_its_replica_is_never_answered_for_by_another(tmp_path: Path) -> None:
    streams = [TinyStream(tmp_path / name) for name in ("mine", "other")]
    for number, stream in enumerate(streams):
        stream.land("a", [f"class {number}"])
    with served(streams[0].root, free_port()) as mine, served(streams[1].root, free_port()) as other:
        done = threading.Event()
        kept_answering: list[bool] = []
        asker = threading.Thread(target=_keep_asking, args=(other.url, other.stream, done, kept_answering))
        asker.start()
        os.kill(mine.replicas()[0], signal.SIGKILL)
        named, failed = _push_until_it_is_back(mine.url, mine.stream)
        done.set()
        asker.join()
        assert named == {mine.stream}
        assert failed > 0  # the replica was away for some of them
        assert len(kept_answering) > 10
        assert all(kept_answering)
        with (
            pytest.raises(ClientError, match="421 wrong_stream"),
            Client(mine.url, stream=other.stream) as wrong,
        ):
            wrong.push([NewImage(picture(7), "wrong")])
    landed = [sorted(path.name for path in stream.inbox.glob("*.parquet")) for stream in streams]
    assert landed[0]
    assert not [name for name in landed[1] if name != "a.parquet"]
    for stream in streams:
        stream.close()


def _push_until_it_is_back(url: str, own: str) -> tuple[set[str], int]:
    """Streams named by all answers, and failures, of a client that pins nothing, until 20 pushes in turn succeed."""
    named, failed, in_turn, number = set(), 0, 0, 0
    deadline = time.monotonic() + 240
    with httpx.Client(base_url=url, timeout=5) as http:
        while in_turn < 20 and time.monotonic() < deadline:
            number += 1
            image = {"file": ("a.png", picture(number), "image/png")}
            try:
                answer = http.post("/v1/items", files={"image": image["file"]}, data={"class": "pushed"})
            except httpx.HTTPError:
                answer = None
            if answer is not None and "x-stream-id" in answer.headers:
                named.add(answer.headers["x-stream-id"])
            fine = answer is not None and answer.status_code == 202
            in_turn, failed = (in_turn + 1, failed) if fine else (0, failed + 1)
            time.sleep(0.05)
    assert in_turn == 20, f"the stream {own} did not come back"
    return named, failed


def _keep_asking(url: str, stream: str, done: threading.Event, answered: list[bool]) -> None:
    with httpx.Client(base_url=url, timeout=5) as http:
        while not done.is_set():
            answer = http.get("/v1/status")
            answered.append(answer.is_success and answer.headers["x-stream-id"] == stream)
            time.sleep(0.1)
