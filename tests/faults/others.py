"""How much of the machine others used meanwhile: what a figure of time must be read with."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

TICK = os.sysconf("SC_CLK_TCK")
BUSY = (0, 1, 2, 5, 6, 7)
"""Columns of /proc/stat: user, nice, system, irq, softirq, and what another machine on the same cores stole."""


class Others:
    """Cores that processes outside of a family kept busy, from look to look.

    What a process of the family did between the last look and its death counts as others': the figure is never too low.
    """

    def __init__(self) -> None:
        self._busy, self._own, self._at = _busy(), dict[int, float](), time.monotonic()
        self._seconds = self._theirs = 0.0

    def look(self, family: Iterable[int]) -> None:
        """Count what was used since the look before."""
        busy, own, now = _busy(), {pid: _used(pid) for pid in family}, time.monotonic()
        if self._own:
            ours = sum(max(0.0, used - self._own.get(pid, 0.0)) for pid, used in own.items())
            self._theirs += max(0.0, busy - self._busy - ours)
            self._seconds += now - self._at
        self._busy, self._own, self._at = busy, own, now

    @property
    def cores(self) -> float | None:
        """On average over all looks; None before the second."""
        return self._theirs / self._seconds if self._seconds else None


def _busy() -> float:
    columns = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(int(columns[i]) for i in BUSY) / TICK


def _used(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICK
    except (OSError, IndexError):  # it went while it was read
        return 0.0
