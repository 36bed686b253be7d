"""The API under requests that nobody should send: the right status, the same three fields, nothing leaked."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from stream_odml.service.backend import Answer, Question
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi

REPOSITORY = str(Path(__file__).resolve().parents[2])
VECTOR = [1.0] * 8
OPTIONS = ServiceOptions(max_body_bytes=200_000, max_ongoing_requests=4)


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def api(backend: FakeBackend) -> Iterator[LocalApi]:
    with LocalApi(create_app(backend, OPTIONS, backend.metrics)) as api:
        yield api


def refused(answer: httpx.Response, status: int, error: str | None = None) -> None:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "detail", "remedy"}
    assert error is None or body["error"] == error
    leaks = ("Traceback", REPOSITORY, "/home", "/usr", "site-packages", ".py", "Error(", "0x")
    assert not any(leak in answer.text for leak in leaks), answer.text


NOT_JSON = [
    b"",
    b"{",
    b"[1]",
    b'"text"',
    b"nul",
    b"\xff\xfe",
    b'{"vector": [NaN]}',
    b'{"vector": [Infinity]}',
    b"[" * 90_000,
]


@pytest.mark.parametrize("body", NOT_JSON, ids=range(len(NOT_JSON)))
@pytest.mark.parametrize("path", ["/v1/search", "/v1/search/batch", "/v1/items"])
def test_broken_json(api: LocalApi, path: str, body: bytes) -> None:
    refused(api.post(path, content=body, headers={"content-type": "application/json"}), 400, "bad_request")


BAD_QUERIES: list[dict[str, Any]] = [
    {},
    {"vector": VECTOR, "image": "aGk="},
    {"vector": []},
    {"vector": "1,2,3"},
    {"vector": ["1"] * 8},
    {"vector": [True] * 8},
    {"vector": [None] * 8},
    {"vector": [[1.0]] * 8},
    {"vector": [1e300] * 8},
    {"vector": [10**400] * 8},
    {"vector": VECTOR[:7]},
    {"vector": VECTOR * 1000},
    {"vector": VECTOR, "k": 0},
    {"vector": VECTOR, "k": -1},
    {"vector": VECTOR, "k": 10**9},
    {"vector": VECTOR, "k": 3.5},
    {"vector": VECTOR, "k": True},
    {"vector": VECTOR, "k": "10"},
    {"vector": VECTOR, "version": "v9999-nope"},
    {"vector": VECTOR, "version": 3},
    {"vector": VECTOR, "version": "../../etc/passwd\x00"},
    {"vector": VECTOR, "filter": "c1"},
    {"vector": VECTOR, "filter": {"clas": "c1"}},
    {"vector": VECTOR, "filter": {"class": [1]}},
    {"vector": VECTOR, "filter": {"class": ["c"] * 1001}},
    {"vector": VECTOR, "filter": {"attributes": {"a": 1}}},
    {"vector": VECTOR, "filter": {"from": "yesterday"}},
    {"vector": VECTOR, "filter": {"from": 1e300}},
    {"vector": VECTOR, "group_by": "shard"},
    {"vector": VECTOR, "min_seq": -1},
    {"vector": VECTOR, "limit": 5},
    {"image": "not base64!"},
    {"image": 7},
    {"image": "aGVsbG8="},
    {"image": "iVBORw==", "version": "v0001-bb"},
]


@pytest.mark.parametrize("body", BAD_QUERIES, ids=range(len(BAD_QUERIES)))
def test_queries_that_make_no_sense(api: LocalApi, body: dict[str, Any]) -> None:
    content = json.dumps(body)
    refused(api.post("/v1/search", content=content, headers={"content-type": "application/json"}), 422)


BAD_BATCHES: list[Any] = [
    [],
    [VECTOR, VECTOR[:3]],
    [VECTOR] * 300,
    [1.0],
    {"base64": "AAAA", "dim": 8},
    {"base64": "AAAA"},
    {"base64": "AADAfw==", "dim": 1},
    {"base64": "", "dim": 8},
]


@pytest.mark.parametrize("vectors", BAD_BATCHES, ids=range(len(BAD_BATCHES)))
def test_batches_that_make_no_sense(api: LocalApi, vectors: Any) -> None:
    refused(api.post("/v1/search/batch", json={"vectors": vectors}), 422)


BAD_PUSHES: list[dict[str, Any]] = [
    {"items": []},
    {"items": {}},
    {"items": [3]},
    {"items": [{"image": "aGk="}]},
    {"items": [{"image": "", "class": "a"}]},
    {"items": [{"image": "aGk=", "class": ""}]},
    {"items": [{"image": "aGk=", "class": "a\nb"}]},
    {"items": [{"image": "aGk=", "class": "a" * 513}]},
    {"items": [{"image": "aGk=", "class": "a", "path": "/etc/passwd"}]},
    {"items": [{"image": "aGk=", "class": "a", "id": "x"}, {"image": "aGk=", "class": "a", "id": "x"}]},
    {"items": [{"image": "aGk=", "class": "a"}] * 300},
    {"items": [{"image": "aGk=", "class": "a", "time": "99999-01-01"}]},
]


@pytest.mark.parametrize("body", BAD_PUSHES, ids=range(len(BAD_PUSHES)))
def test_pushes_that_make_no_sense(api: LocalApi, backend: FakeBackend, body: dict[str, Any]) -> None:
    refused(api.post("/v1/items", json=body), 422)
    assert not backend.pushed


BAD_FORMS = [
    ("multipart/form-data", b"--x--"),
    ("multipart/form-data; boundary=", b"--x--"),
    ("multipart/form-data; boundary=x", b""),
    ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--"),
    (
        "multipart/form-data; boundary=x",
        b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\ncut off',
    ),
    ("multipart/form-data; boundary=x", b"--x\r\n" * 3000 + b"--x--"),
    ("multipart/form-data; boundary=x", b"--x\r\nno header\r\n--x--"),
]


@pytest.mark.parametrize(("kind", "body"), BAD_FORMS, ids=range(len(BAD_FORMS)))
def test_broken_forms(api: LocalApi, kind: str, body: bytes) -> None:
    for path in ("/v1/search", "/v1/items"):
        refused(api.post(path, content=body, headers={"content-type": kind}), 400)


def test_wrong_addresses_methods_and_media_types(api: LocalApi) -> None:
    refused(api.get("/v1/nothing"), 404, "not_found")
    refused(api.get("/page/../api.py"), 404)
    refused(api.get("/page/..%2Fapi.py"), 404)
    refused(api.get("/page/%2e%2e%2f%2e%2e%2fetc%2fpasswd"), 404)
    refused(api.get("/v1/search"), 405, "method_not_allowed")
    refused(api.request("PUT", "/v1/items"), 405)
    refused(api.post("/v1/search", content=b"a,b", headers={"content-type": "text/csv"}), 415)
    refused(api.post("/v1/items", content=b"<a/>", headers={"content-type": "application/xml"}), 415)
    refused(api.post("/v1/search", content=b""), 415, "unsupported_media_type")
    refused(api.get("/v1/classes?limit=0"), 422, "invalid_parameter")
    refused(api.get("/v1/classes?since=soon"), 422, "bad_time")
    refused(api.get("/v1/projection?points=99999999"), 422)
    refused(api.post("/v1/versions/nope/rollback"), 404, "unknown_version")
    refused(api.get("/v1/versions/nope/diff/v0000-aa"), 404)


def test_a_body_over_the_limit_is_refused_by_its_header_and_by_its_bytes(api: LocalApi) -> None:
    json_type = {"content-type": "application/json"}
    refused(api.post("/v1/search", content=b"x" * 200_001, headers=json_type), 413, "body_too_large")

    async def endless() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 65_536

    refused(api.post("/v1/search", content=endless(), headers=json_type), 413)


def test_a_client_that_dawdles_is_let_go(backend: FakeBackend) -> None:
    async def slow() -> AsyncIterator[bytes]:
        while True:
            yield b" "
            await asyncio.sleep(0.05)

    with LocalApi(create_app(backend, ServiceOptions(body_timeout_s=0.2))) as api:
        refused(api.post("/v1/search", content=slow(), headers={"content-type": "application/json"}), 408)


def test_an_answer_that_takes_too_long_is_given_up() -> None:
    with LocalApi(create_app(FakeBackend(delay_s=60), ServiceOptions(timeout_s=0.1))) as api:
        refused(api.post("/v1/search", json={"vector": VECTOR}), 504, "timeout")


class _Held(FakeBackend):
    """Answers no search until it is let."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.free = asyncio.Event()

    async def search(self, question: Question) -> Answer:
        await self.free.wait()
        return await super().search(question)


def test_more_requests_than_the_queue_holds_are_asked_to_come_back() -> None:
    backend = _Held()
    with LocalApi(create_app(backend, ServiceOptions(max_ongoing_requests=4))) as api:

        async def burst() -> list[httpx.Response]:
            asked = [
                asyncio.create_task(api.send("POST", "/v1/search", json={"vector": VECTOR}))
                for _ in range(12)
            ]
            while sum(one.done() for one in asked) < 8:
                await asyncio.sleep(0.01)
            assert (await api.send("GET", "/healthz")).status_code == 200
            backend.free.set()
            return await asyncio.gather(*asked)

        answers = api._loop.run_until_complete(burst())
    assert [answer.status_code for answer in answers].count(200) == 4
    for answer in answers:
        if answer.status_code != 200:
            refused(answer, 503, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1


def test_a_failure_of_ours_tells_nothing(
    api: LocalApi, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise RuntimeError("/srv/secret/path.py exploded")

    monkeypatch.setattr(FakeBackend, "classes", explode)
    refused(api.get("/v1/classes"), 500, "internal")
    assert api.get("/healthz").status_code == 200


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer wrong", "bearer secre", "Basic secret", "Bearer secretx"]
)
def test_without_the_token_nothing_but_the_page_and_the_probes(tmp_path: Path, given: str | None) -> None:
    (tmp_path / "token").write_text("secret\n")
    headers = {} if given is None else {"authorization": given}
    with LocalApi(create_app(FakeBackend(), ServiceOptions(token_file=tmp_path / "token"))) as api:
        for method, path in [
            ("POST", "/v1/search"),
            ("GET", "/v1/classes"),
            ("GET", "/metrics"),
            ("GET", "/v1/nothing"),
        ]:
            answer = api.request(method, path, headers=headers)
            refused(answer, 401, "unauthorized")
            assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/", "/docs", "/openapi.json", "/healthz", "/readyz"):
            assert api.get(path).status_code == 200
        right = {"authorization": "Bearer secret"}
        assert api.get("/v1/classes", headers=right).status_code == 200


def test_an_unreadable_or_empty_token_file_stops_the_service(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "missing"):
        with pytest.raises(ValueError, match="token"):
            create_app(FakeBackend(), ServiceOptions(token_file=tmp_path / name))


def test_a_thousand_random_requests_never_crash_it(api: LocalApi) -> None:
    rng = random.Random(0)
    valid = json.dumps({"vector": VECTOR, "k": 3, "filter": {"class": ["c1"]}}).encode()
    kinds = [
        "application/json",
        "multipart/form-data; boundary=x",
        "image/png",
        "application/octet-stream",
        "text/plain",
        "",
    ]
    paths = [
        "/v1/search",
        "/v1/search/batch",
        "/v1/items",
        "/v1/items/a/b",
        "/v1/versions/x/rollback",
        "/",
        "/v1/classes",
    ]

    async def storm() -> set[int]:
        seen = set()
        for _ in range(1000):
            body = bytearray(valid)
            for _ in range(rng.randrange(8)):
                body[rng.randrange(len(body))] = rng.randrange(256)
            method = rng.choice(["POST", "POST", "GET", "DELETE", "PATCH"])
            headers = {"content-type": rng.choice(kinds)}
            answer = await api.send(method, rng.choice(paths), content=bytes(body), headers=headers)
            seen.add(answer.status_code)
            if answer.status_code >= 400:
                refused(answer, answer.status_code)
        return seen

    seen = api._loop.run_until_complete(storm())
    assert seen <= {200, 202, 400, 404, 405, 415, 422}
