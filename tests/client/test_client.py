"""The client against the real API in process, and against a service that fails in every way."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np
import pytest

from stream_odml.client import AsyncClient, Client, NewImage, ServiceError, ServiceUnreachable
from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from tests.service.fake_backend import FakeBackend

PNG = b"\x89PNG and so on"
STATUS = {"version": "v0001-bb", "items": 20}


class Script:
    """A transport that plays prepared outcomes and keeps the requests it saw."""

    def __init__(self, *outcomes: httpx.Response | Exception) -> None:
        self.outcomes = list(outcomes)
        self.seen: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.seen.append(request)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


def busy(after: str | None = None) -> httpx.Response:
    body = {"error": "overloaded", "detail": "too many", "remedy": "try again"}
    return httpx.Response(503, json=body, headers={} if after is None else {"Retry-After": after})


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    taken: list[float] = []
    monkeypatch.setattr("stream_odml.client.client.time.sleep", taken.append)
    return taken


def client_of(script: Script, retries: int = 4) -> Client:
    return Client("http://service", transport=httpx.MockTransport(script), retries=retries)


def test_it_comes_back_after_a_broken_connection_and_after_a_refusal(waits: list[float]) -> None:
    script = Script(httpx.ConnectError("refused"), busy(), httpx.Response(200, json=STATUS))
    with client_of(script) as client:
        assert client.status() == STATUS
    assert len(script.seen) == 3
    assert 0 < waits[0] <= 0.1
    assert waits[1] > waits[0] * 0.5


def test_it_waits_as_long_as_the_answer_says(waits: list[float]) -> None:
    script = Script(busy("3"), busy("9999"), httpx.Response(200, json=STATUS))
    with client_of(script) as client:
        client.status()
    assert waits == [3.0, 10.0]


def test_it_gives_up_with_the_words_of_the_service(waits: list[float]) -> None:
    script = Script(*[busy() for _ in range(3)])
    with (
        client_of(script, retries=2) as client,
        pytest.raises(ServiceError, match="503 overloaded: too many") as seen,
    ):
        client.status()
    assert (seen.value.status, seen.value.error, seen.value.remedy) == (503, "overloaded", "try again")
    assert len(script.seen) == 3


def test_what_the_client_did_wrong_is_not_tried_again(waits: list[float]) -> None:
    body = {"error": "bad_vector", "detail": "NaN", "remedy": ""}
    script = Script(httpx.Response(422, json=body))
    with client_of(script) as client, pytest.raises(ServiceError, match="bad_vector"):
        client.search_vector([1.0])
    assert not waits


def test_a_rollback_is_never_repeated(waits: list[float]) -> None:
    script = Script(httpx.ReadTimeout("slow"), httpx.Response(202, json={}))
    with client_of(script) as client, pytest.raises(ServiceUnreachable, match="rollback"):
        client.rollback("v0000-aa")
    assert len(script.seen) == 1


def test_a_push_is_repeated_under_one_key(waits: list[float]) -> None:
    landed = httpx.Response(202, json={"shard": "push-1", "ids": ["a"]})
    script = Script(httpx.ReadTimeout("slow"), landed)
    with client_of(script) as client:
        assert client.push([NewImage(PNG, "cat")]).shard == "push-1"
    keys = [request.headers["idempotency-key"] for request in script.seen]
    assert keys[0] == keys[1]


def test_an_answer_that_is_not_the_services_is_an_error_with_its_text(waits: list[float]) -> None:
    script = Script(httpx.Response(404, text="<h1>nginx</h1>"))
    with client_of(script) as client, pytest.raises(ServiceError, match="nginx"):
        client.versions()


def test_nothing_listens() -> None:
    client = Client("http://127.0.0.1:9", retries=0)
    with client, pytest.raises(ServiceUnreachable, match="is the service up"):
        client.status()


def with_service(act: Callable[[AsyncClient, FakeBackend], object], tmp_path: Path) -> None:
    """Run ``act`` with a client of the real API, which asks for a token."""
    (tmp_path / "token").write_text("secret")
    backend = FakeBackend()
    app = create_app(backend, ServiceOptions(token_file=tmp_path / "token"))

    async def run() -> None:
        async with AsyncClient(
            "http://localhost", "secret", retries=0, transport=httpx.ASGITransport(app)
        ) as client:
            await act(client, backend)  # type: ignore[misc]

    asyncio.run(run())


def test_every_search_against_the_real_api(tmp_path: Path) -> None:
    async def act(client: AsyncClient, backend: FakeBackend) -> None:
        one = await client.search_vector(backend.vectors[5], version="v0000-aa", k=2)
        assert (one.version, one.sequence, one.hits[0].item_id) == ("v0001-bb", 7, "shard-1/5")
        many = await client.search_batch(backend.vectors[[5, 6]], k=1)
        assert [result.hits[0].item_id for result in many] == ["shard-1/5", "shard-1/6"]
        grouped = await client.search_vector(backend.vectors[5], group_by_class=True, k=2)
        assert grouped.groups[0].class_name == "c1"
        (tmp_path / "a.png").write_bytes(PNG)
        start = datetime(2026, 1, 1, 3, tzinfo=UTC)
        late = await client.search_image(tmp_path / "a.png", classes=["c0"], after=start)
        assert [hit.item_id for hit in late.hits] == ["shard-1/3"]
        assert late.hits[0].time == start

    with_service(act, tmp_path)


def test_everything_else_against_the_real_api(tmp_path: Path) -> None:
    async def act(client: AsyncClient, backend: FakeBackend) -> None:
        pushed = await client.push(
            [NewImage(PNG, "cat", item_id="tom", attributes={"colour": "grey"})], key="k"
        )
        assert pushed.ids == ("tom",)
        assert (await client.get("shard-1/6")).class_name == "c1"
        assert (await client.classes(limit=1))[0].name == "c4"
        tree = await client.versions()
        assert (tree.head, len(tree.versions)) == ("v0001-bb", 2)
        assert (await client.diff("v0000-aa", "v0001-bb"))["to"] == "v0001-bb"
        await client.delete("shard-1/6")
        await client.delete_class("c1")
        await client.rollback("v0000-aa", relearn=False)
        assert backend.asked[-1] == ("rollback", "v0000-aa", "False")
        assert (await client.status())["items"] == 20
        with pytest.raises(ServiceError, match="unknown_item"):
            await client.get("nobody")

    with_service(act, tmp_path)


def test_a_batch_of_another_shape_is_refused_before_it_is_sent() -> None:
    with Client() as client, pytest.raises(ValueError, match=r"expected \[n, d\]"):
        client.search_batch(np.zeros(8, np.float32))


def test_both_clients_have_the_same_methods() -> None:
    names = {name for name in dir(Client) if not name.startswith("_")} - {"close"}
    assert names == {name for name in dir(AsyncClient) if not name.startswith("_")} - {"aclose"}


def test_a_method_tells_what_it_takes_and_gives() -> None:
    for method in (Client.diff, AsyncClient.diff):
        assert str(inspect.signature(method)) == "(self, a: 'str', b: 'str') -> 'dict[str, Any]'"
        assert "changed from version `a` to `b`" in (inspect.getdoc(method) or "")
