"""Questions to a running stream while something else goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE_S, WAIT_S = 0.02, 500.0


@contextmanager
def meanwhile(ask: Callable[[], object | None], problems: list[object]) -> Iterator[None]:
    """Call `ask` again and again, in a thread, until the block ends. What it returns is a problem, unless it is None;
    what it raises is the last. The block fails if nothing was answered."""
    done, answers = threading.Event(), 0

    def go_on() -> None:
        nonlocal answers
        while not done.wait(PAUSE_S):
            try:
                problem = ask()
            except Exception as error:
                problems.append(error)
                return
            answers += 1
            if problem is not None:
                problems.append(problem)

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=WAIT_S)
    assert answers or problems
