"""An ASGI app called in process, without a socket: httpx over its own event loop."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Any, Self

import httpx
from starlette.types import ASGIApp


class LocalApi:
    """A synchronous face on ``app``; requests run one after the other in one event loop."""

    def __init__(self, app: ASGIApp, token: str | None = None) -> None:
        self.app = app
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._loop.close()

    def request(self, method: str, url: str, **more: Any) -> httpx.Response:
        return self._loop.run_until_complete(self.send(method, url, **more))

    async def send(self, method: str, url: str, **more: Any) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://localhost", headers=self._headers
        ) as client:
            return await client.request(method, url, **more)

    def get(self, url: str, **more: Any) -> httpx.Response:
        return self.request("GET", url, **more)

    def post(self, url: str, **more: Any) -> httpx.Response:
        return self.request("POST", url, **more)

    def delete(self, url: str, **more: Any) -> httpx.Response:
        return self.request("DELETE", url, **more)
