"""The door: token, queue bound, body bound, time bound. Pure ASGI, because every query passes here."""

from __future__ import annotations

import asyncio
import logging
import time

from starlette._utils import get_route_path
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_odml.cluster.serving.access import Access
from stream_odml.cluster.serving.errors import ApiError, internal_error, too_large, unavailable
from stream_odml.cluster.serving.metrics import ServiceMetrics
from stream_odml.cluster.serving.options import ServiceOptions

log = logging.getLogger(__name__)

# Probes must answer while the queue is full.
_ALWAYS = ("/healthz", "/readyz")
KIND = "stream_odml.kind"
"""Key of the ASGI scope under which a route notes what kind of request it answered, for the metrics."""


class Guard:
    """ASGI middleware that refuses before any work is done, and turns every failure into a JSON error."""

    def __init__(
        self, app: ASGIApp, options: ServiceOptions, access: Access, metrics: ServiceMetrics
    ) -> None:
        self._app, self._options, self._access, self._metrics = app, options, access, metrics
        self._in_flight = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":  # there is none to talk to
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        sender = _Sender(send)
        self._in_flight += 1
        try:
            self._admit(scope)
            async with asyncio.timeout(self._options.timeout_s):
                body = _BoundedBody(receive, self._options)
                await self._app(scope, body.receive, sender.send)
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
            self._in_flight -= 1
            self._metrics.observe_request(
                scope.get(KIND, "other"), sender.status, time.perf_counter() - started
            )

    def _admit(self, scope: Scope) -> None:
        self._access.check(scope)
        if get_route_path(scope) in _ALWAYS:
            return
        if self._in_flight > self._options.max_ongoing_requests:
            raise unavailable("overloaded", f"{self._in_flight} requests are being answered already")
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length[:20]) > self._options.max_body_bytes:
            raise too_large(self._options.max_body_bytes)


class _BoundedBody:
    """Counts the bytes of a request body, and gives a client that dawdles a bounded time."""

    def __init__(self, receive: Receive, options: ServiceOptions) -> None:
        self._receive, self._options = receive, options
        self._seen = 0
        self._complete = False
        self._deadline = asyncio.get_running_loop().time() + options.body_timeout_s

    async def receive(self) -> Message:
        if self._complete:  # waits for the disconnect, which no deadline bounds
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(
                408, "body_timeout", f"the body did not arrive within {self._options.body_timeout_s:g} s"
            ) from None
        self._seen += len(message.get("body", b""))
        if self._seen > self._options.max_body_bytes:
            raise too_large(self._options.max_body_bytes)
        self._complete = not message.get("more_body", False)
        return message


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
            await refusal.response()(scope, receive, self.send)


def _timed_out(timeout_s: float) -> ApiError:
    return ApiError(504, "timeout", f"no answer within {timeout_s:g} s", "ask for less, or try again later")
