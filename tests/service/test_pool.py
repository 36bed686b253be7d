"""Queries answered together: each gets its own reply, and none waits for one that has left."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from stream_odml.service.pool import Coalescer


class Work:
    """Doubles numbers, refuses negative ones, and holds its first batch until it is let go."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()

    def __call__(self, asks: Sequence[int]) -> Sequence[int | Exception]:
        self.batches.append(list(asks))
        assert self.go.wait(60)
        return [ValueError(str(ask)) if ask < 0 else 2 * ask for ask in asks]


async def gather(work: Work, asks: Sequence[int], limit: int = 4) -> list[int | BaseException]:
    with ThreadPoolExecutor(1) as pool:
        coalescer = Coalescer(pool, work, limit)
        tasks = [asyncio.ensure_future(coalescer.ask(ask)) for ask in asks[:1]]
        while not work.batches:
            await asyncio.sleep(0.001)
        tasks += [asyncio.ensure_future(coalescer.ask(ask)) for ask in asks[1:]]
        await asyncio.sleep(0.01)
        work.go.set()
        return await asyncio.gather(*tasks, return_exceptions=True)


def test_what_came_in_meanwhile_is_one_batch_up_to_the_limit() -> None:
    work = Work()
    assert asyncio.run(gather(work, [1, 2, 3, 4, 5, 6, 7])) == [2, 4, 6, 8, 10, 12, 14]
    assert work.batches == [[1], [2, 3, 4, 5], [6, 7]]


def test_short_work_runs_on_the_loop_and_long_work_does_not() -> None:
    ran: list[tuple[int, list[int]]] = []

    def work(asks: Sequence[int]) -> Sequence[int | Exception]:
        ran.append((threading.get_ident(), list(asks)))
        return list(asks)

    async def run() -> list[int]:
        with ThreadPoolExecutor(1) as pool:
            coalescer = Coalescer(pool, work, 4, short=lambda asks: sum(asks) < 5)
            short = await asyncio.gather(*(coalescer.ask(ask) for ask in (1, 1, 2)))
            return short + await asyncio.gather(*(coalescer.ask(ask) for ask in (4, 4)))

    assert asyncio.run(run()) == [1, 1, 2, 4, 4]
    (first, together), (second, long) = ran
    assert (first == threading.get_ident(), together) == (True, [1, 1, 2])
    assert (second != threading.get_ident(), long) == (True, [4, 4])


def test_one_that_fails_fails_alone() -> None:
    replies = asyncio.run(gather(Work(), [1, -2, 3]))
    assert (replies[0], replies[2]) == (2, 6)
    assert isinstance(replies[1], ValueError)


def test_work_that_breaks_reaches_its_askers_and_the_next_are_served() -> None:
    def broken(asks: Sequence[int]) -> Sequence[int | Exception]:
        raise RuntimeError("broken")

    async def run() -> None:
        with ThreadPoolExecutor(1) as pool:
            coalescer = Coalescer(pool, broken, 4)
            for _ in range(2):
                with pytest.raises(RuntimeError, match="broken"):
                    await coalescer.ask(1)

    asyncio.run(run())


def test_who_has_left_is_not_worked_for() -> None:
    async def run() -> list[list[int]]:
        work = Work()
        with ThreadPoolExecutor(1) as pool:
            coalescer = Coalescer(pool, work, 4)
            first = asyncio.ensure_future(coalescer.ask(1))
            await asyncio.sleep(0.01)
            gone = asyncio.ensure_future(coalescer.ask(2))
            stays = asyncio.ensure_future(coalescer.ask(3))
            await asyncio.sleep(0.01)
            gone.cancel()
            work.go.set()
            assert (await first, await stays) == (2, 6)
        return work.batches

    assert asyncio.run(run()) == [[1], [3]]
