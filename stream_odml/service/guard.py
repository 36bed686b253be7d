"""The one middleware: stream, access, body, places and time of a request. Pure ASGI: every query passes here.

Protects: nothing is done for a request before it is allowed and whole, nothing goes on after it has been given up, and
every failure becomes a JSON error with one trace in the log.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping

from starlette._utils import get_route_path
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_odml.config.service import ServiceOptions
from stream_odml.service.access import STREAM_HEADER, Access, check_request, check_stream
from stream_odml.service.admission import Arrivals, Places, overloaded
from stream_odml.service.errors import ApiError, too_large
from stream_odml.service.metrics import ServiceMetrics

log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]

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
    """ASGI middleware that refuses before any work is done, and turns every failure into a JSON error. `direct` are
    handlers of POST requests by path which need nothing of the framework: its routing and dependency solving take
    several times as long as reading a vector."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        options: ServiceOptions,
        access: Access,
        metrics: ServiceMetrics,
        stream_id: Callable[[], str | None],
        direct: Mapping[str, Handler],
    ) -> None:
        self._app, self._options, self._access, self._metrics = app, options, access, metrics
        self._stream_id, self._direct = stream_id, direct
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
        sender = _Sender(send, self._stream_id())
        async with self._answered(scope, receive, sender), self._admitted(scope, receive, sender) as replayed:
            handler = self._direct.get(get_route_path(scope)) if scope["method"] == "POST" else None
            if handler is None:
                # HEAD is routed as GET: its headers are those of GET, and the server sends no body (RFC 9110, 9.3.2).
                read = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                await self._app(read, replayed, sender.send)
            else:
                response = await handler(Request(scope, replayed))
                await response(scope, replayed, sender.send)

    @contextlib.asynccontextmanager
    async def _answered(self, scope: Scope, receive: Receive, sender: _Sender) -> AsyncIterator[None]:
        """Answer every failure within with a JSON error, and count the request."""
        started = time.perf_counter()
        try:
            yield
        except ApiError as refusal:
            await sender.refuse(scope, receive, refusal)
        except TimeoutError:
            late = f"no answer within {self._options.timeout_s:g} s"
            await sender.refuse(
                scope, receive, ApiError(504, "timeout", late, "ask for less, or try again later")
            )
        except ClientDisconnect:
            log.debug("client left: %s", scope["method"])
        except Exception:  # the server would close the connection without an answer
            log.exception("request failed: %s", scope["method"])
            # The trace is in the log, not in the answer.
            said = ("the server failed on this request", "try again; report it if it stays")
            await sender.refuse(scope, receive, ApiError(500, "internal", *said))
        finally:
            self._metrics.observe_request(
                scope.get(KIND, "other"), sender.status, time.perf_counter() - started
            )

    @contextlib.asynccontextmanager
    async def _admitted(self, scope: Scope, receive: Receive, sender: _Sender) -> AsyncIterator[Receive]:
        """Check the request, read its body and hold places for it; give what the app is to receive it from."""
        check_stream(scope["headers"], sender.stream_id)
        self._access.check(scope)
        check_request(scope)
        with contextlib.ExitStack() as held:
            body = b"" if get_route_path(scope) in _ALWAYS else await self._taken(scope, receive, held)
            held.enter_context(_Watch(receive, sender))
            async with asyncio.timeout(self._options.timeout_s):
                yield _replayed(body, receive)

    async def _taken(self, scope: Scope, receive: Receive, held: contextlib.ExitStack) -> bytes:
        """Return the whole body; `held` keeps its memory and its places accounted for."""
        headers = dict(scope["headers"])
        # The client's address: behind our own proxy the one that it names, which the server has put here.
        peer = str((scope.get("client") or [""])[0])
        heavy = _is_heavy(scope["method"], get_route_path(scope), headers)
        self._check_body(headers)
        if not self._places.has_room(peer) or (heavy and not self._heavy.has_room(peer)):
            raise overloaded(self._options.max_ongoing_requests)
        arrival = held.enter_context(self._arrivals.arrival(peer))
        body = await self._arrivals.read(arrival, receive) if scope["method"] in _WITH_BODY else b""
        held.enter_context(self._places.place(peer))
        if heavy:
            held.enter_context(self._heavy.place(peer))
        return body

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

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Raise ClientDisconnect in place of a cancellation that is this watch's own."""
        self._timer.cancel()
        if self._watching is not None:
            self._watching.cancel()
        own = kind is asyncio.CancelledError and self._gone
        if own and self._request is not None and self._request.uncancel() == 0:
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
    """Names the stream in every response, and remembers the status sent: no late failure starts a second one."""

    def __init__(self, send: Send, stream_id: str | None) -> None:
        self._send, self.stream_id = send, stream_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.stream_id is not None:
                named = (STREAM_HEADER.lower().encode(), self.stream_id.encode())
                message = {**message, "headers": [*message["headers"], named]}
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


def _is_heavy(method: str, path: str, headers: Mapping[bytes, bytes]) -> bool:
    if method in ("GET", "HEAD"):
        return path not in _LIGHT_READS and not path.startswith(("/page/", "/v1/items/"))
    length = headers.get(b"content-length", b"")
    small = length.isdigit() and int(length[:20]) <= SMALL_BODY
    return not (
        small and path == "/v1/search" and headers.get(b"content-type", b"").startswith(b"application/json")
    )
