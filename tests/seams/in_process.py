"""The package's own synchronous client over an ASGI app in this process."""

from __future__ import annotations

import asyncio

import httpx
from starlette.types import ASGIApp


def in_process(app: ASGIApp) -> httpx.BaseTransport:
    """A transport whose requests run in ``app``, each in an event loop of its own."""
    return _InProcess(app)


class _InProcess(httpx.BaseTransport):
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        async def answer() -> tuple[httpx.Response, bytes]:
            response = await httpx.ASGITransport(self._app).handle_async_request(
                httpx.Request(request.method, request.url, headers=request.headers, content=request.read())
            )
            return response, await response.aread()

        response, body = asyncio.run(answer())
        return httpx.Response(response.status_code, headers=response.headers, content=body)
