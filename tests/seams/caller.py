"""One client of an app over ASGI, at an address of its own, that may stop sending or leave."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp

VECTOR = json.dumps({"vector": [1.0] * 8}).encode()
JSON = {"content-type": "application/json"}


class Caller:
    """One client of `app`, at an address of its own, that may stop sending or leave."""

    def __init__(self, app: ASGIApp, peer: str) -> None:
        self._app, self._peer = app, peer

    async def ask(
        self,
        path: str,
        *parts: bytes,
        method: str = "POST",
        whole: bool = True,
        headers: Mapping[str, str] = JSON,
    ) -> int:
        """The status of the answer; 0 for none. Unless `whole`, nothing comes after `parts`."""
        self.gone = asyncio.Event()
        left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        if whole:
            left = [*left, {"type": "http.request", "body": b"", "more_body": False}]
        seen: list[int] = []

        async def receive() -> Any:
            if left:
                return left.pop(0)
            await self.gone.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            seen.append(message.get("status", 0))

        given = {"host": "localhost", **headers}
        if whole:
            given["content-length"] = str(sum(map(len, parts)))
        scope = {
            "type": "http", "method": method, "path": path, "raw_path": path.encode(), "query_string": b"",
            "headers": [(k.encode(), v.encode()) for k, v in given.items()], "root_path": "", "scheme": "http",
            "client": (self._peer, 1), "server": ("127.0.0.1", 80), "http_version": "1.1",
        }  # fmt: skip
        await self._app(scope, receive, send)
        return seen[0] if seen else 0
