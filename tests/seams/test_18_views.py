"""Seam 18: large answers about the gallery are made one at a time, apart from those who search, and kept as bytes."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Mapping
from typing import Any

from stream_odml.config.service import ServiceOptions
from stream_odml.service.api import create_app
from stream_odml.service.backend import ClassTable, MapRequest
from tests.service.fake_backend import FakeBackend
from tests.service.local import LocalApi


class SlowBackend(FakeBackend):
    """Takes a while for a map, and remembers on which threads and how many at once."""

    def __init__(self) -> None:
        super().__init__()
        self.made, self.most, self._now = 0, 0, 0
        self.threads: set[str] = set()

    def projection(self, asked: MapRequest) -> Mapping[str, Any]:
        self._now += 1
        self.most = max(self.most, self._now)
        self.threads.add(threading.current_thread().name)
        time.sleep(0.1)
        self._now -= 1
        self.made += 1
        return super().projection(asked)

    def classes(self) -> ClassTable:
        self.threads.add(threading.current_thread().name)
        return super().classes()


def test_many_who_ask_for_maps_are_worked_for_one_at_a_time() -> None:
    backend = SlowBackend()
    app = create_app(backend, ServiceOptions(max_ongoing_requests=200))

    async def run() -> None:
        asked = [f"/v1/projection?points={3 + n % 4}" for n in range(40)]
        answers = await asyncio.gather(*(api.send("GET", url) for url in [*asked, "/v1/classes"]))
        assert {answer.status_code for answer in answers} == {200}
        assert len({answer.content for answer in answers[:-1]}) == 4

    with LocalApi(app) as api:
        asyncio.run(run())
    assert (backend.most, backend.made) == (1, 4)
    assert threading.current_thread().name not in backend.threads


def test_what_is_kept_is_of_the_state_that_is_served() -> None:
    backend = SlowBackend()
    with LocalApi(create_app(backend, ServiceOptions())) as api:
        before = api.get("/v1/projection?points=3").json()
        backend.sequence += 1
        after = api.get("/v1/projection?points=3").json()
    assert after["sequence"] == before["sequence"] + 1
    assert backend.made == 2
