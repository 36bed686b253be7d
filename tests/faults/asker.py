"""A client that asks at a constant rate, and repeats a question that failed once: what it sees is availability."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import httpx

from tests.faults.feeder import picture

TIMEOUT_S = 2.0
RETRY_AFTER_S = 0.3


@dataclass(frozen=True)
class Question:
    """When it was asked (monotonic seconds), how long until its answer, and after which attempt (0: never)."""

    at: float
    seconds: float
    attempt: int
    problem: str = ""


class Asker:
    """Asks for the neighbours of an image, ``rate`` times a second, however slow the answers are."""

    def __init__(self, url: Callable[[], str], rate: float) -> None:
        self._url, self._every_s = url, 1.0 / rate
        self._image = picture("c00000", 5)
        self._pool = ThreadPoolExecutor(16)
        self._clients = threading.local()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.questions: list[Question] = []

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End, and wait for the answers."""
        self._stop.set()
        self._thread.join(timeout=10)
        self._pool.shutdown(wait=True)

    def _run(self) -> None:
        due = time.monotonic()
        while not self._stop.is_set():
            self._pool.submit(self._ask, due)
            due += self._every_s
            time.sleep(max(0.0, due - time.monotonic()))

    def _ask(self, at: float) -> None:
        problem = ""
        for attempt in (1, 2):
            seen = self._once()
            if not seen:
                self.questions.append(Question(at, time.monotonic() - at, attempt, problem))
                return
            problem = seen
            if attempt == 1:
                time.sleep(RETRY_AFTER_S)
        self.questions.append(Question(at, time.monotonic() - at, 0, problem))

    def _once(self) -> str:
        """Why there was no answer, or nothing."""
        client: httpx.Client | None = getattr(self._clients, "client", None)
        try:
            if client is None or client.is_closed:
                client = self._clients.client = httpx.Client(base_url=self._url(), timeout=TIMEOUT_S)
            answer = client.post("/v1/search?k=3", content=self._image, headers={"Content-Type": "image/png"})
            return "" if answer.is_success else f"HTTP {answer.status_code}"
        except (httpx.HTTPError, OSError, KeyError, ValueError) as error:
            if client is not None:
                client.close()  # the address may be another one by now
            return type(error).__name__


def availability(questions: list[Question], last_attempt: int) -> float | None:
    """Share answered within ``last_attempt`` attempts; None of nothing."""
    if not questions:
        return None
    return sum(0 < q.attempt <= last_attempt for q in questions) / len(questions)
