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
        self._busy = False

    def ask(self, ask: Ask, cost: float = 0.0) -> asyncio.Future[Reply]:
        """Return the reply to come, or what ``work`` raises for it; the least ``cost`` goes first."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        heapq.heappush(self._waiting, (cost, next(self._numbers), ask, future))
        if not self._busy:
            self._busy = True
            loop.call_soon(self._answer, loop)
        return future

    def _answer(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answer one batch of those that wait: at once if it is short, else on the pool."""
        batch = self._next_batch()
        asks, self._busy = [ask for ask, _ in batch], bool(batch)
        if not batch:
            return
        replies: Sequence[Reply | Exception]
        try:
            if not self._short(asks):
                job = loop.run_in_executor(self._pool, self._work, asks)
                job.add_done_callback(lambda done: self._reply(loop, batch, _outcome(done, len(batch))))
                return
            replies = self._work(asks)
        except Exception as error:  # one bad batch must not keep the next from its turn
            replies = [error] * len(batch)
        self._reply(loop, batch, replies)

    def _reply(
        self,
        loop: asyncio.AbstractEventLoop,
        batch: list[tuple[Ask, asyncio.Future[Reply]]],
        replies: Sequence[Reply | Exception],
    ) -> None:
        for (_, future), reply in zip(batch, replies, strict=True):
            if future.done():
                continue
            if isinstance(reply, Exception):
                future.set_exception(reply)
            else:
                future.set_result(reply)
        # The replies leave, and what came in is read, before the next batch begins.
        loop.call_soon(self._answer, loop)

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


def _outcome(job: asyncio.Future[Sequence[Reply | Exception]], count: int) -> Sequence[Reply | Exception]:
    """Return the replies of a job on the pool; if it failed, its error for each of the ``count`` asks."""
    if job.cancelled():
        return [RuntimeError("the service is closing")] * count
    error = job.exception()
    if error is None:
        return job.result()
    return [error if isinstance(error, Exception) else RuntimeError(repr(error))] * count
