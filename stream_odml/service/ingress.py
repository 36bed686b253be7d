"""What stands before every request in Serve's own HTTP server (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH names it)."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

_HEADER = b"x-request-disconnect-disabled"


class Unwatched:
    """Tells Serve not to watch each connection for a client that leaves: two tasks and a queue for every request, to
    cancel work that takes milliseconds. The admission middleware (`guard.py`) bounds what waits longer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["headers"] = [*scope["headers"], (_HEADER, b"?1")]
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return the middlewares of the proxy, as Serve asks for them."""
    return [Middleware(Unwatched)]
