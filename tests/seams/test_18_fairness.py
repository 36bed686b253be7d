"""Seam 18: what one client asks never takes the service from the others: places are fair between peers, bodies that
arrive hold none, and work ends with its request."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from typing import Any

import pytest

from stream_odml.config.service import ServiceOptions
from stream_odml.service.admission import Arrivals, Places
from stream_odml.service.api import create_app
from stream_odml.service.backend import Answer, Question
from stream_odml.service.errors import ApiError
from stream_odml.service.pool import ShortestFirst
from tests.seams.caller import JSON, VECTOR, Caller
from tests.service.fake_backend import FakeBackend


class Slow(FakeBackend):
    """Answers one version of the truth after `delay_s`, and remembers whose work was given up."""

    given_up = 0

    async def search(self, question: Question) -> Answer:
        try:
            return await super().search(question)
        except asyncio.CancelledError:
            self.given_up += 1
            raise


# --- places ----------------------------------------------------------------------------------------------------------


def test_a_peer_with_all_places_leaves_each_other_one_its_share() -> None:
    places = Places(8)
    held = [places.place("greedy") for _ in range(8)]
    for one in held:
        one.__enter__()
    assert not places.has_room("greedy")
    others = [places.place(f"peer {number}") for number in range(8)]
    for one in others:
        one.__enter__()
    assert not places.has_room("one more")  # twice as many as there are: an end to it
    with pytest.raises(ApiError, match="being answered"), places.place("greedy"):
        pass
    for one in (*others, *held):
        one.__exit__(None, None, None)
    assert all(places.has_room(peer) for peer in ("greedy", "one more"))


def test_slow_answers_to_one_peer_refuse_no_other() -> None:
    backend = Slow(delay_s=0.3)
    app = create_app(backend, ServiceOptions(max_ongoing_requests=4))

    async def run() -> tuple[list[int], int]:
        flood = [asyncio.create_task(Caller(app, "10.0.0.1").ask("/v1/search", VECTOR)) for _ in range(40)]
        await asyncio.sleep(0.05)
        other = await Caller(app, "10.0.0.2").ask("/v1/search", VECTOR)
        return await asyncio.gather(*flood), other

    flood, other = asyncio.run(run())
    assert other == 200
    assert flood.count(200) == 4
    assert flood.count(503) == 36


def test_heavy_requests_leave_light_ones_half_of_the_places_even_for_one_peer() -> None:
    backend = Slow(delay_s=0.3)
    app = create_app(backend, ServiceOptions(max_ongoing_requests=8))
    batch = json.dumps({"vectors": [[1.0] * 8] * 2}).encode()

    async def run() -> tuple[list[int], int]:
        flood = [
            asyncio.create_task(Caller(app, "10.0.0.1").ask("/v1/search/batch", batch)) for _ in range(40)
        ]
        await asyncio.sleep(0.05)
        light = await Caller(app, "10.0.0.1").ask("/v1/search", VECTOR)
        return await asyncio.gather(*flood), light

    flood, light = asyncio.run(run())
    assert (light, flood.count(200)) == (200, 4)


# --- bodies ----------------------------------------------------------------------------------------------------------


def test_bodies_that_never_end_hold_no_place_and_get_408() -> None:
    app = create_app(FakeBackend(), ServiceOptions(max_ongoing_requests=4, body_timeout_s=0.4))

    async def run() -> tuple[list[int], list[int]]:
        slow = [
            asyncio.create_task(Caller(app, "10.0.0.1").ask("/v1/search", b'{"vec', whole=False))
            for _ in range(300)
        ]
        await asyncio.sleep(0.1)
        others = [await Caller(app, "10.0.0.1").ask("/v1/search", VECTOR) for _ in range(5)]
        return await asyncio.gather(*slow), others

    slow, others = asyncio.run(run())
    assert set(others) == {200}
    assert set(slow) == {408}


def test_too_many_half_open_bodies_let_the_oldest_of_the_greediest_go() -> None:
    arrivals = Arrivals(count=10, total_bytes=1 << 20, body_bytes=1 << 20, timeout_s=5)

    async def never() -> Any:
        await asyncio.sleep(60)

    async def read(peer: str) -> str:
        with arrivals.arrival(peer) as arrival:
            try:
                await arrivals.read(arrival, never)
            except ApiError as refusal:
                return refusal.error
        return ""

    async def run() -> list[bool]:
        modest = [asyncio.create_task(read("modest")) for _ in range(2)]
        await asyncio.sleep(0)
        greedy = [asyncio.create_task(read("greedy")) for _ in range(30)]
        await asyncio.sleep(0.1)
        done = [task.done() for task in (*modest, *greedy)]
        for task in (*modest, *greedy):
            task.cancel()
        return done

    done = asyncio.run(run())
    assert done == [False, False, *[True] * 22, *[False] * 8]


@pytest.mark.parametrize("wait_s", [0.0, 0.05])
def test_the_largest_body_makes_room_when_memory_is_full(wait_s: float) -> None:
    """Also for one that comes before the task of the largest body has run again."""
    options = ServiceOptions(max_body_bytes=100_000, max_held_bytes=150_000, body_timeout_s=1)
    app = create_app(FakeBackend(), options)

    async def run() -> tuple[int, int, int]:
        hog = asyncio.create_task(Caller(app, "a").ask("/v1/items", b"x" * 90_000, whole=False))
        second = asyncio.create_task(Caller(app, "a").ask("/v1/items", b"x" * 80_000, whole=False))
        await asyncio.sleep(wait_s)
        modest = await Caller(app, "a").ask("/v1/search", VECTOR)
        return await hog, await second, modest

    hog, second, modest = asyncio.run(run())
    assert modest == 200
    assert {hog, second} == {408}


def test_encoded_bodies_are_not_unpacked() -> None:
    app = create_app(FakeBackend(), ServiceOptions())
    for encoding in ("gzip", "br", "deflate", "gzip, identity"):
        assert (
            asyncio.run(
                Caller(app, "a").ask("/v1/search", VECTOR, headers={**JSON, "content-encoding": encoding})
            )
            == 415
        )


# --- leaving ---------------------------------------------------------------------------------------------------------


def test_work_ends_when_its_client_leaves(caplog: pytest.LogCaptureFixture) -> None:
    backend_s = 120
    backend = Slow(delay_s=backend_s)
    app = create_app(backend, ServiceOptions(), backend.metrics)

    async def run() -> float:
        caller = Caller(app, "a")
        asked = asyncio.create_task(caller.ask("/v1/search", VECTOR))
        await asyncio.sleep(0.2)
        began = time.monotonic()
        caller.gone.set()
        assert await asked == 0
        return time.monotonic() - began

    assert asyncio.run(run()) < backend_s / 2
    assert backend.given_up == 1
    assert not caplog.records
    assert 'kind="vector",outcome="gone"} 1.0' in backend.metrics_text().decode()


def test_what_is_given_up_after_504_does_not_go_on() -> None:
    backend = Slow(delay_s=30)
    app = create_app(backend, ServiceOptions(timeout_s=0.2))
    assert asyncio.run(Caller(app, "a").ask("/v1/search", VECTOR)) == 504
    assert backend.given_up == 1


def test_who_leaves_while_waiting_for_a_thread_costs_nothing() -> None:
    ran: list[int] = []
    free = threading.Event()

    async def run() -> None:
        pool = ShortestFirst(1, "test")
        first = asyncio.create_task(pool.run(0, free.wait, 5))
        await asyncio.sleep(0.05)
        waiting = [asyncio.create_task(pool.run(cost, ran.append, cost)) for cost in (5, 3, 4, 1)]
        await asyncio.sleep(0.05)
        waiting[1].cancel()
        first.cancel()  # its thread works on: nobody else may have it before it is done
        await asyncio.sleep(0.05)
        assert ran == []
        free.set()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert await pool.run(9, lambda: "still works") == "still works"
        pool.close()

    asyncio.run(run())
    assert ran == [1, 4, 5]
