"""A light client that keeps asking over kept connections and remembers when each answer came and what it said."""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import time
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Event
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
    """Asks ``bodies`` in turn on ``connections`` connections, at ``rate`` a second or without pause, in a process of
    its own: what the benchmark itself does must not be in the times. ``seen`` is there when the context has ended."""

    def __init__(
        self, url: str, bodies: Sequence[bytes], connections: int, rate: float | None = None
    ) -> None:
        self.seen: list[Seen] = []
        context = multiprocessing.get_context("spawn")
        self._stop = context.Event()
        self._ours, theirs = context.Pipe(duplex=False)
        self._process = context.Process(
            target=_ask_until, args=(url, list(bodies), connections, rate, self._stop, theirs), daemon=True
        )

    def __enter__(self) -> Asker:
        self._process.start()
        self._ours.recv()  # it has begun
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._ours.poll(60):
            self.seen = self._ours.recv()
        self._process.join(timeout=30)


def _ask_until(
    url: str,
    bodies: Sequence[bytes],
    connections: int,
    rate: float | None,
    stop: Event,
    link: Connection,
) -> None:
    asking = _Asking(url, bodies, connections, rate, stop)
    link.send("begun")
    asyncio.run(asking.run())
    link.send(asking.seen)


class _Asking:
    def __init__(
        self, url: str, bodies: Sequence[bytes], connections: int, rate: float | None, stop: Event
    ) -> None:
        self.seen: list[Seen] = []
        self._at, self._bodies, self._rate = urlsplit(url), bodies, rate
        self._connections, self._number, self._stop = connections, 0, stop

    async def run(self) -> None:
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
            kept = False
            try:
                link = link or await asyncio.open_connection(self._at.hostname, self._at.port)
                status, answer, kept = await asyncio.wait_for(
                    _exchange(*link, self._bodies[number % len(self._bodies)]), 15
                )
            except (OSError, asyncio.IncompleteReadError, TimeoutError, ValueError):
                pass
            if link is not None and not kept:
                link[1].close()
                link = None
            self.seen.append(Seen(number, began, time.perf_counter() - began, status, answer))
        if link is not None:
            link[1].close()


async def _exchange(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes
) -> tuple[int, dict[str, Any], bool]:
    """Status, answer, and whether the connection stays: a proxy that is replaced says `Connection: close`."""
    head = (
        "POST /v1/search HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines[1:] if ": " in line)
    data = await reader.readexactly(int(headers["content-length"]))
    return int(lines[0].split()[1]), json.loads(data), headers.get("connection") != "close"
