"""A light client that keeps asking over kept connections and remembers when each answer came and what it said."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Seen:
    """Request ``number``: when it began (perf_counter), how long it took in s, status (0: none), the answer."""

    number: int
    began: float
    seconds: float
    status: int
    answer: dict[str, Any]


class Asker:
    """Asks ``bodies(i)`` on ``connections`` connections, one thread for all; at ``rate`` a second, or without pause."""

    def __init__(
        self, url: str, bodies: Callable[[int], bytes], connections: int, rate: float | None = None
    ) -> None:
        self.seen: list[Seen] = []
        self._at, self._bodies, self._rate = urlsplit(url), bodies, rate
        self._connections, self._number = connections, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=30)

    async def _run(self) -> None:
        self._origin = time.perf_counter()
        await asyncio.gather(*(self._ask() for _ in range(self._connections)))

    async def _ask(self) -> None:
        link: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self._stop.is_set():
            number, self._number = self._number, self._number + 1
            if self._rate is not None:
                await asyncio.sleep(max(0.0, self._origin + number / self._rate - time.perf_counter()))
            began, status = time.perf_counter(), 0
            answer: dict[str, Any] = {}
            try:
                link = link or await asyncio.open_connection(self._at.hostname, self._at.port)
                status, answer = await asyncio.wait_for(_exchange(*link, self._bodies(number)), 15)
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                if link is not None:
                    link[1].close()
                link = None
            self.seen.append(Seen(number, began, time.perf_counter() - began, status, answer))
        if link is not None:
            link[1].close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, dict[str, Any]]:
    head = (
        "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    data = await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), json.loads(data)
