"""The first middleware: access, body, places and time of a request. Pure ASGI, because every query passes here.

Protects: nothing is done for a request before it is allowed and whole, nothing goes on after it has been given up, and
every failure becomes a JSON error with one trace in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator, Mapping

from starlette._utils import get_route_path
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_odml.config.service import ServiceOptions
from stream_odml.service.access import Access
from stream_odml.service.admission import Arrivals, Places, overloaded
from stream_odml.service.errors import ApiError, internal_error, too_large
from stream_odml.service.metrics import ServiceMetrics

log = logging.getLogger(__name__)

# Probes must answer while every place is taken.
_ALWAYS = ("/healthz", "/readyz")
# What is read from the served snapshot in microseconds; all else may take a while, and gets half of the places.
_LIGHT_READS = ("/v1/status", "/", "/docs", "/openapi.json")
_WITH_BODY = ("POST", "PUT", "PATCH")
SMALL_BODY = 1 << 16
"""Bytes of a search that is one vector: more may be an image or many vectors."""
WATCH_AFTER_S = 0.05
"""Work that takes longer is given up when its client leaves; watching each connection would cost the short ones."""
KIND = "stream_odml.kind"
"""Key of the ASGI scope under which a route notes what kind of request it answered, for the metrics."""


class Guard:
    """ASGI middleware that refuses before any work is done, and turns every failure into a JSON error."""

    def __init__(
        self, app: ASGIApp, options: ServiceOptions, access: Access, metrics: ServiceMetrics
    ) -> None:
        self._app, self._options, self._access, self._metrics = app, options, access, metrics
        limit = options.max_ongoing_requests
        self._places, self._heavy = Places(limit), Places(max(1, limit // 2))
        self._arrivals = Arrivals(
            options.max_arriving, options.max_held_bytes, options.max_body_bytes, options.body_timeout_s
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none to talk to
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sender = _Sender(send)
        try:
            self._access.check(scope)
            await self._admit(scope, receive, sender)
        except ApiError as refusal:
            await sender.refuse(scope, receive, refusal)
        except TimeoutError:
            await sender.refuse(scope, receive, _timed_out(self._options.timeout_s))
        except ClientDisconnect:
            log.debug("client left: %s", scope["method"])
        except Exception:
            log.exception("request failed: %s", scope["method"])
            await sender.refuse(scope, receive, internal_error())
        finally:
            self._metrics.observe_request(
                scope.get(KIND, "other"), sender.status, time.perf_counter() - started
            )

    async def _admit(self, scope: Scope, receive: Receive, sender: _Sender) -> None:
        path, headers = get_route_path(scope), dict(scope["headers"])
        if path in _ALWAYS:
            await self._work(scope, b"", receive, sender)
            return
        peer, heavy = _peer(scope), _is_heavy(scope["method"], path, headers)
        self._check_body(headers)
        if not self._places.has_room(peer) or (heavy and not self._heavy.has_room(peer)):
            raise overloaded(self._options.max_ongoing_requests)
        with self._arrivals.arrival(peer) as arrival:
            body = await self._arrivals.read(arrival, receive) if scope["method"] in _WITH_BODY else b""
            with self._places.place(peer), self._heavy.place(peer) if heavy else contextlib.nullcontext():
                await self._work(scope, body, receive, sender)

    def _check_body(self, headers: Mapping[bytes, bytes]) -> None:
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._options.max_body_bytes:
            raise too_large(self._options.max_body_bytes)
        encoding = headers.get(b"content-encoding", b"identity").strip().lower()
        if encoding not in (b"identity", b""):
            raise ApiError(
                415,
                "unsupported_content_encoding",
                f"the body is encoded as {encoding[:80].decode('latin-1')!a}",
                "send it as it is, without Content-Encoding",
            )

    async def _work(self, scope: Scope, body: bytes, receive: Receive, sender: _Sender) -> None:
        with _Watch(receive, sender) as watch:
            try:
                async with asyncio.timeout(self._options.timeout_s):
                    await self._app(scope, _replayed(body, receive), sender.send)
            except asyncio.CancelledError:
                watch.explain()
                raise


class _Watch:
    """Cancels the request of this task once its client has left, from a moment on that short work does not see."""

    def __init__(self, receive: Receive, sender: _Sender) -> None:
        self._receive, self._sender = receive, sender
        self._watching: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> _Watch:
        self._request = asyncio.current_task()
        self._timer = asyncio.get_running_loop().call_later(WATCH_AFTER_S, self._begin)
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()

    def explain(self) -> None:
        """Raise ClientDisconnect if the cancellation that is being handled is this watch's own."""
        if self._gone and self._request is not None and self._request.uncancel() == 0:
            raise ClientDisconnect

    def _begin(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if self._sender.status == 0 and self._request is not None:
            self._gone = True
            self._request.cancel()


class _Sender:
    """Remembers the status sent, so that a late failure never starts a second response."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        try:
            await self._send(message)
        except OSError:  # how a server may say that the connection is gone
            raise ClientDisconnect from None

    async def refuse(self, scope: Scope, receive: Receive, refusal: ApiError) -> None:
        if self.status == 0:
            with contextlib.suppress(ClientDisconnect):
                await refusal.response()(scope, receive, self.send)


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return an ASGI `receive` that gives the body in one message, then what the server sends."""
    left: Iterator[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        message = next(left, None)
        return await receive() if message is None else message

    return replay


def _peer(scope: Scope) -> str:
    """Return the client's address: behind our own proxy the one that the proxy names, which the server has put here."""
    client = scope.get("client")
    return str(client[0]) if client else ""


def _is_heavy(method: str, path: str, headers: Mapping[bytes, bytes]) -> bool:
    if method in ("GET", "HEAD"):
        return path not in _LIGHT_READS and not path.startswith(("/page/", "/v1/items/"))
    length = headers.get(b"content-length", b"")
    small = length.isdigit() and int(length[:20]) <= SMALL_BODY
    return not (
        small and path == "/v1/search" and headers.get(b"content-type", b"").startswith(b"application/json")
    )


def _timed_out(timeout_s: float) -> ApiError:
    return ApiError(504, "timeout", f"no answer within {timeout_s:g} s", "ask for less, or try again later")
