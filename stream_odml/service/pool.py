"""Threads whose shortest job goes first: what takes long keeps nobody waiting who asks for little."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class ShortestFirst:
    """`threads` threads of one event loop. Who is cancelled while waiting costs nothing; a job that runs is finished,
    and its thread is taken again only then, so that the work is bounded whoever leaves."""

    def __init__(self, threads: int, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, name)
        self._free = threads
        self._waiting: list[tuple[float, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    async def run(self, cost: float, work: Callable[..., T], *arguments: Any) -> T:
        """Return `work(*arguments)`; of those that wait, the one of least `cost` is next."""
        loop = asyncio.get_running_loop()
        await self._turn(loop, cost)
        job = self._pool.submit(work, *arguments)
        job.add_done_callback(lambda _: None if loop.is_closed() else loop.call_soon_threadsafe(self._next))
        return await asyncio.wrap_future(job)

    async def _turn(self, loop: asyncio.AbstractEventLoop, cost: float) -> None:
        if self._free:
            self._free -= 1
            return
        turn: asyncio.Future[None] = loop.create_future()
        heapq.heappush(self._waiting, (cost, next(self._numbers), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # the turn came and nobody is there to take it
                self._next()
            raise

    def _next(self) -> None:
        while self._waiting:
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1

    def close(self) -> None:
        """End the threads after what they do now."""
        self._pool.shutdown(cancel_futures=True)
