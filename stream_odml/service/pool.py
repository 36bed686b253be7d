"""Order of work: of jobs for a few threads the shortest goes first; queries that come while another is answered are
answered together, as one batch.

Protects: what takes long keeps nobody waiting who asks for little. A query that is alone waits for no other.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import Any, Generic, TypeVar

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


Ask = TypeVar("Ask")
Reply = TypeVar("Reply")


class Coalescer(Generic[Ask, Reply]):
    """Runs `work` on `pool` over whatever has come in meanwhile, at most `limit` at once, and at most `budget`
    in the sum of what `weigh` says of each, but for one alone.

    `work` takes a list of asks and returns a reply or an exception for each, in order. One batch runs at a
    time, so a pool with one thread keeps FAISS on one core. Belongs to one event loop.

    What `short` says is done in less time than two threads need to hand it over runs on the loop itself.
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
        self._answering: asyncio.Task[None] | None = None

    def ask(self, ask: Ask, cost: float = 0.0) -> asyncio.Future[Reply]:
        """Return the reply to come, or what `work` raises for it; the least `cost` goes first."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.create_future()
        heapq.heappush(self._waiting, (cost, next(self._numbers), ask, future))
        if self._answering is None or self._answering.done():
            self._answering = loop.create_task(self._answer_all())
        return future

    async def _answer_all(self) -> None:
        """Answer batch after batch, at once if it is short, else on the pool. The error of one that fails is for all of
        its askers; those that come later have their turn."""
        loop = asyncio.get_running_loop()
        while batch := self._next_batch():
            asks = [ask for ask, _ in batch]
            replies: Sequence[Reply | Exception]
            try:
                is_short = self._short(asks)
                replies = (
                    self._work(asks) if is_short else await loop.run_in_executor(self._pool, self._work, asks)
                )
            except BaseException as error:  # also where the pool was closed, or a library panicked
                failure = error if isinstance(error, Exception) else RuntimeError(f"not answered: {error!r}")
                replies = [failure] * len(batch)
            for (_, future), reply in zip(batch, replies, strict=True):
                if future.done():
                    continue
                if isinstance(reply, Exception):
                    future.set_exception(reply)
                else:
                    future.set_result(reply)
            # The replies leave, and what came in is read, before the next batch begins.
            await asyncio.sleep(0)

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
