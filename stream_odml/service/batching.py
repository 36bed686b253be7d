"""Queries that wait while another is answered are answered together: no delay when alone, one pass when not.

The cheapest go first, and one pass takes only so much: a client that asks for much does not hold up the others.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

Ask = TypeVar("Ask")
Reply = TypeVar("Reply")


class Coalescer(Generic[Ask, Reply]):
    """Runs ``work`` on ``pool`` over whatever has come in meanwhile, at most ``limit`` at once, and at most ``budget``
    in the sum of what ``weigh`` says of each, but for one alone.

    ``work`` takes a list of asks and returns a reply or an exception for each, in order. One batch runs at a
    time, so a pool with one thread keeps FAISS on one core. Belongs to one event loop.

    What ``short`` says is done in less time than two threads need to hand it over runs on the loop itself.
    """

    def __init__(
        self,
        pool: Executor,
        work: Callable[[Sequence[Ask]], Sequence[Reply | Exception]],
        limit: int,
        short: Callable[[Sequence[Ask]], bool] = lambda _: False,
        budget: float = math.inf,
        weigh: Callable[[Ask], float] = lambda _: 0.0,
    ) -> None:
        self._pool, self._work, self._limit, self._short = pool, work, limit, short
        self._budget, self._weigh = budget, weigh
        self._numbers = itertools.count()
        self._waiting: list[tuple[float, int, Ask, asyncio.Future[Reply]]] = []
        self._runner: asyncio.Task[None] | None = None

    async def ask(self, ask: Ask, cost: float = 0.0) -> Reply:
        """The reply to ``ask``, or what ``work`` raised for it; the least ``cost`` goes first."""
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._waiting, (cost, next(self._numbers), ask, future))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        try:
            while self._waiting:
                batch = self._next_batch()
                if batch:
                    await self._answer(batch)
        finally:
            self._runner = None

    def _next_batch(self) -> list[tuple[Ask, asyncio.Future[Reply]]]:
        batch: list[tuple[Ask, asyncio.Future[Reply]]] = []
        left = self._budget
        while self._waiting and len(batch) < self._limit:
            _, _, ask, future = self._waiting[0]
            left -= 0.0 if future.done() else self._weigh(ask)
            if batch and left < 0:
                break
            heapq.heappop(self._waiting)
            # Who was timed out or left needs no answer, and must not make others wait for theirs.
            if not future.done():
                batch.append((ask, future))
        return batch

    async def _answer(self, batch: list[tuple[Ask, asyncio.Future[Reply]]]) -> None:
        asks = [ask for ask, _ in batch]
        replies: Sequence[Reply | Exception]
        try:
            if self._short(asks):
                replies = self._work(asks)
            else:
                replies = await asyncio.get_running_loop().run_in_executor(self._pool, self._work, asks)
        except Exception as error:  # one bad batch must not end the runner: each of its askers gets the error
            replies = [error] * len(batch)
        for (_, future), reply in zip(batch, replies, strict=True):
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)
        await asyncio.sleep(0)  # the replies leave, and what came in is read, before the next batch begins
