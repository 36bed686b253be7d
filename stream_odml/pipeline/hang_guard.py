"""Ends this process when it makes no progress for too long, so that what hangs a reader is dealt with as what kills it.

Protects: work goes on whatever a decoder or a mount does. The alarm is a C thread of faulthandler, which needs no
interpreter lock: code that hangs while it holds the lock is ended too, and its traceback is in the process's log.
"""

from __future__ import annotations

import faulthandler
import sys
import time
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")

REARM_S = 1.0
"""An alarm is set anew at most so often: it costs a thread."""


class HangGuard:
    """Use as a context and call :meth:`beat` at each sign of progress. One at a time in a process."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._armed = 0.0

    def __enter__(self) -> HangGuard:
        self._arm()
        return self

    def __exit__(self, *_: object) -> None:
        faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """Note that something was done."""
        if time.monotonic() - self._armed > min(REARM_S, self._limit_s / 4):
            self._arm()

    def _arm(self) -> None:
        self._armed = time.monotonic()
        faulthandler.dump_traceback_later(self._limit_s, exit=True, file=sys.__stderr__ or sys.stderr)


def guarded(things: Iterator[T], limit_s: float) -> Iterator[T]:
    """Yield the same things, each of which may take so long to come; how long its taker needs is not counted."""
    while True:
        with HangGuard(limit_s):
            thing = next(things, None)
        if thing is None:
            return
        yield thing
