"""Seam 17: once there is a token every address needs it however it is written, but for a short list; a token for
reading changes nothing; and no page of another site, nor a name that it lets point here, reaches the service."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.types import ASGIApp

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from tests.service.fake_backend import FakeBackend

SEARCH = b'{"vector": [1, 1, 1, 1, 1, 1, 1, 1]}'
OPEN = ("/", "/docs", "/openapi.json", "/healthz", "/readyz")
CHANGES = [
    ("POST", "/v1/items"),
    ("DELETE", "/v1/items/shard-1/6"),
    ("DELETE", "/v1/shards/shard-1"),
    ("DELETE", "/v1/classes/c1"),
    ("POST", "/v1/versions/v0000-aa/rollback"),
]
READS = ["/v1/status", "/v1/classes", "/v1/versions", "/v1/projection", "/metrics", "/v1/items/shard-1/6"]


def asked(
    app: ASGIApp,
    method: str,
    path: str,
    *,
    root: str = "",
    kind: str = "http",
    body: bytes = b"",
    **headers: str,
) -> int:
    """The status that `app` answers over ASGI; 0 for a websocket that is closed."""
    given = {"host": "localhost:8000", **{name.replace("_", "-"): value for name, value in headers.items()}}
    scope = {
        "type": kind, "method": method, "path": root + path, "raw_path": (root + path).encode(), "root_path": root,
        "query_string": b"", "scheme": "http", "http_version": "1.1", "client": ("127.0.0.1", 9), "app": None,
        "server": ("127.0.0.1", 8000),
        "headers": [(k.encode(), v.encode("latin-1")) for k, v in given.items() if v != "-"],
    }  # fmt: skip
    seen: list[Any] = []
    messages = [{"type": "http.request", "body": body} if kind == "http" else {"type": "websocket.connect"}]

    async def receive() -> Any:
        if not messages:  # a client that stays: work for one that leaves is given up after a while
            await asyncio.Event().wait()
        return messages.pop()

    async def send(message: Any) -> None:
        seen.append(message)

    async def run() -> None:
        await app(scope, receive, send)

    asyncio.run(run())
    return int(seen[0].get("status", 0))


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend()


@pytest.fixture
def guarded(backend: FakeBackend, tmp_path: Path) -> ASGIApp:
    """The app with a token for changing and one for reading."""
    (tmp_path / "token").write_text("change\n")
    (tmp_path / "read").write_text("read\n")
    options = ServiceOptions(token_file=tmp_path / "token", read_token_file=tmp_path / "read")
    return create_app(backend, options)


def spellings(path: str) -> Iterator[tuple[str, str]]:
    """A path as a server may hand it over: with and without a prefix, and as nobody should write it."""
    for root in ("", "/api", "/a/b", "/v1"):
        for written in (
            path,
            f"/{path}",
            f"{path}/",
            path.replace("/v1", "/./v1"),
            path.upper(),
            f"{path}%20",
        ):
            yield root, written


@pytest.mark.parametrize(
    "method", ["GET", "HEAD", "OPTIONS", "POST", "DELETE", "PUT", "PATCH", "TRACE", "BREW"]
)
def test_nothing_but_the_list_goes_without_a_token(
    guarded: ASGIApp, backend: FakeBackend, method: str
) -> None:
    paths = [
        *READS,
        "/v1/search",
        "/v1",
        "/v1/nothing",
        "/nothing",
        "/redoc",
        "/page/a/b",
        "/page/",
        "/healthz/x",
    ]
    for path in (*paths, *(path for _, path in CHANGES)):
        for root, written in spellings(path):
            assert asked(guarded, method, written, root=root, body=SEARCH) == 401, (root, written)
    assert not backend.asked
    assert not backend.pushed


@pytest.mark.parametrize("root", ["", "/api", "/a/b"])
def test_the_page_and_the_probes_are_open_under_any_prefix(guarded: ASGIApp, root: str) -> None:
    for path in (*OPEN, "/page/app.js"):
        assert asked(guarded, "GET", path, root=root) in (200, 404), path
        assert asked(guarded, "POST", path, root=root) == 401


def test_a_mounted_app_is_as_closed(guarded: ASGIApp, backend: FakeBackend) -> None:
    outer = Starlette(routes=[Mount("/in/side", app=guarded)])
    for path in READS:
        assert asked(outer, "GET", f"/in/side{path}") == 401
        assert asked(outer, "GET", f"/in/side{path}", authorization="Bearer read") == 200
    for method, path in CHANGES:
        assert asked(outer, method, f"/in/side{path}") == 401
    assert asked(outer, "GET", "/in/side/healthz") == 200
    assert asked(outer, "POST", "/in/side/v1/search", authorization="Bearer read", content_type="application/json",
                 body=SEARCH) == 200  # fmt: skip
    assert not backend.asked


def test_a_websocket_is_closed(guarded: ASGIApp) -> None:
    for path in ("/", "/v1/status", "/healthz"):
        assert asked(guarded, "GET", path, kind="websocket") == 0


def test_the_token_for_reading_searches_and_changes_nothing(guarded: ASGIApp, backend: FakeBackend) -> None:
    for path in READS:
        assert asked(guarded, "GET", path, authorization="Bearer read") == 200
    json: dict[str, Any] = {"authorization": "Bearer read", "content_type": "application/json"}
    assert asked(guarded, "POST", "/v1/search", body=SEARCH, **json) == 200
    for root in ("", "/api"):
        for method, path in CHANGES:
            assert asked(guarded, method, path, root=root, authorization="Bearer read") == 403
    assert not backend.asked
    for method, path in CHANGES[1:]:
        assert asked(guarded, method, path, root="/api", authorization="Bearer change") == 202


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
def test_the_scheme_may_be_written_in_any_case(guarded: ASGIApp, scheme: str) -> None:
    assert asked(guarded, "GET", "/v1/status", authorization=f"{scheme} change") == 200
    for wrong in ("", "change", f"{scheme} Change", f"{scheme}change", f"{scheme} read2", "Basic change"):
        assert asked(guarded, "GET", "/v1/status", authorization=wrong) == 401


def test_tokens_that_guard_nothing_stop_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "same").write_text("secret")
    with pytest.raises(ValueError, match="choose another"):
        create_app(
            FakeBackend(), ServiceOptions(token_file=tmp_path / "same", read_token_file=tmp_path / "same")
        )
    monkeypatch.setenv("STREAM_ODML_READ_TOKEN", "only")
    app = create_app(FakeBackend(), ServiceOptions())
    assert asked(app, "GET", "/v1/status") == 401
    assert asked(app, "GET", "/v1/status", authorization="bearer only") == 200
    assert asked(app, "DELETE", "/v1/classes/c1", authorization="bearer only") == 403


FOREIGN: list[dict[str, Any]] = [
    {"origin": "http://evil.example"},
    {"origin": "null"},
    {"origin": "http://localhost:3000"},
    {"origin": "http://localhost:8000.evil.example"},
    {"origin": "http://evil.example", "sec_fetch_site": "same-origin"},
    {"origin": "http://localhost:8000", "sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "cross-site"},
    {"sec_fetch_site": "same-site"},
    {"sec_fetch_site": "something-new"},
    {"origin": ""},
    {"origin": "ftp://localhost:8000"},
    {"origin": "chrome-extension://localhost:8000"},
    {"origin": "//localhost:8000"},
]
KINDS = [
    "",
    "text/plain",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json",
]


@pytest.mark.parametrize("headers", FOREIGN, ids=range(len(FOREIGN)))
def test_a_page_of_another_site_changes_nothing(backend: FakeBackend, headers: dict[str, Any]) -> None:
    app = create_app(backend, ServiceOptions())
    for (method, path), kind in itertools.product(CHANGES, KINDS):
        assert asked(app, method, path, content_type=kind, **headers) == 403
    assert asked(app, "POST", "/v1/search", body=SEARCH, content_type="application/json", **headers) == 403
    assert not backend.asked
    assert not backend.pushed


def test_the_own_page_and_clients_without_a_browser_may(backend: FakeBackend) -> None:
    app = create_app(backend, ServiceOptions())
    own: dict[str, Any] = {"origin": "http://localhost:8000", "sec_fetch_site": "same-origin"}
    assert asked(app, "POST", "/v1/versions/v0000-aa/rollback", **own) == 202
    assert asked(app, "POST", "/v1/versions/v0000-aa/rollback") == 202
    behind_tls: dict[str, Any] = {
        "host": "localhost",
        "origin": "https://localhost",
        "sec_fetch_site": "same-origin",
    }
    assert asked(app, "DELETE", "/v1/classes/c1", **behind_tls) == 202
    assert asked(app, "GET", "/v1/status", sec_fetch_site="cross-site", origin="http://evil.example") == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:8000",
        "localhost.evil.example",
        "10.0.0.9",
        "[::2]",
        "x",
        "[::1].evil.example",
        "[localhost]:80",
        "[x.localhost]",
        ".localhost",
        "[::1",
        "[]",
        "a..localhost",
        "evil.example#.localhost",
        "evil.example/.localhost",
        "evil.example:80.localhost",
        "user@localhost",
        "localhost:\xb2",
        "localhost:80:80",
    ],
)
def test_a_name_that_is_not_ours_reads_nothing(backend: FakeBackend, host: str) -> None:
    app = create_app(backend, ServiceOptions())
    for path in (*READS, *OPEN):
        assert asked(app, "GET", path, host=host) == 421
    for method, path in CHANGES:
        assert asked(app, method, path, host=host, origin=f"http://{host}") == 421
    assert not backend.asked


def test_the_names_of_the_service() -> None:
    import socket

    app = create_app(FakeBackend(), ServiceOptions(host="10.1.2.3"))
    names = [
        "LOCALHOST:1",
        "localhost:",
        "localhost.",
        "a.localhost",
        "[::ffff:127.0.0.1]:8000",
        "127.0.0.1",
        "127.9.9.9:8000",
        "[::1]:8000",
        "10.1.2.3",
    ]
    for name in (*names, socket.gethostname(), "-"):
        assert asked(app, "GET", "/v1/status", host=name) == 200, name
    assert asked(app, "GET", "/v1/status", host="10.1.2.4") == 421
    everywhere = create_app(FakeBackend(), ServiceOptions(host="0.0.0.0"))
    assert asked(everywhere, "GET", "/v1/status", host="10.1.2.4:80") == 200
    assert asked(everywhere, "GET", "/v1/status", host="evil.example") == 421
    named = create_app(FakeBackend(), ServiceOptions(allowed_hosts=("search.example", "*.svc.cluster.local")))
    for name in ("search.example:443", "SEARCH.example", "a.b.svc.cluster.local", "127.0.0.1"):
        assert asked(named, "GET", "/v1/status", host=name) == 200
    for name in (
        "svc.cluster.local.evil",
        "a.search.example",
        "xsvc.cluster.local",
        "evil/.svc.cluster.local",
    ):
        assert asked(named, "GET", "/v1/status", host=name) == 421
    assert (
        asked(create_app(FakeBackend(), ServiceOptions(allowed_hosts=("*",))), "GET", "/", host="x.y") == 200
    )


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp"])
def test_json_must_say_that_it_is_json(backend: FakeBackend, kind: str) -> None:
    app = create_app(backend, ServiceOptions())
    for path in ("/v1/search", "/v1/search/batch", "/v1/items"):
        assert asked(app, "POST", path, body=SEARCH, content_type=kind) == 415
    if kind:
        assert asked(app, "POST", "/v1/versions/v0000-aa/rollback", body=b"{}", content_type=kind) == 415
    assert not backend.asked
