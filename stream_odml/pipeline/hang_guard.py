"""Ends this process when it makes no progress for too long, so that what hangs a reader is dealt with as what kills it.

Protects: work goes on whatever a decoder or a mount does. The alarm is a C thread of faulthandler, which needs no
interpreter lock: code that hangs while it holds the lock is ended too, and its traceback is in the process's log.
"""

from __future__ import annotations

import contextlib
import faulthandler
import math
import sys
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

T = TypeVar("T")

REARM_S = 1.0
"""An alarm is set anew at most so often: it costs a thread."""


@contextlib.contextmanager
def hang_guard(limit_s: float) -> Iterator[Callable[[], None]]:
    """Yield what is to be called at each sign of progress. One at a time in a process."""
    armed = -math.inf

    def beat() -> None:
        nonlocal armed
        if time.monotonic() - armed > min(REARM_S, limit_s / 4):
            armed = time.monotonic()
            faulthandler.dump_traceback_later(limit_s, exit=True, file=sys.__stderr__ or sys.stderr)

    beat()
    try:
        yield beat
    finally:
        faulthandler.cancel_dump_traceback_later()


def guarded(things: Iterator[T], limit_s: float) -> Iterator[T]:
    """Yield the same things, each of which may take so long to come; how long its taker needs is not counted."""
    while True:
        with hang_guard(limit_s):
            thing = next(things, None)
        if thing is None:
            return
        yield thing
