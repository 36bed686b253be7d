"""Which stream answers: every answer names it, and a request meant for another one is refused before it is read.

Protects: several streams on one machine never take each other's pushes, whatever a port or a proxy leads to.
"""

from __future__ import annotations

from collections.abc import Callable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stream_odml.service.errors import ApiError, unavailable

STREAM_HEADER = "X-Stream-Id"
"""In an answer: the stream that gives it. In a request: the stream that it is meant for."""
_KEY = STREAM_HEADER.lower().encode()


class Identity:
    """ASGI middleware around all others: refusals of theirs name the stream as well."""

    def __init__(self, app: ASGIApp, stream_id: Callable[[], str | None]) -> None:
        self._app, self._stream_id = app, stream_id

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        own = self._stream_id()

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start" and own is not None:
                message = {**message, "headers": [*message["headers"], (_KEY, own.encode())]}
            await send(message)

        asked = {value.decode("latin-1").strip() for name, value in scope["headers"] if name == _KEY}
        if asked - {own}:
            refusal = (
                _wrong(own) if own is not None else unavailable("not_ready", "the stream is not read yet")
            )
            await refusal.response()(scope, receive, named)
            return
        await self._app(scope, receive, named)


def _wrong(own: str) -> ApiError:
    return ApiError(
        421,
        "wrong_stream",
        f"the request is meant for another stream than {own}, which answers here",
        f"correct the address of the service, or the header {STREAM_HEADER}",
    )
