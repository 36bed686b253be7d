"""Anonymous memory of every process below this one, by what the process is for, sampled several times a second."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType

EVERY_S = 0.2
OTHER = "ray_itself"


class MemoryWatch:
    """Use as a context. Anonymous pages cannot be dropped by the system, as those of mapped files can."""

    def __init__(self, roles: Mapping[str, str]) -> None:
        self._roles = roles
        self._peak: dict[int, float] = {}
        self._role: dict[int, str] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def peaks(self) -> dict[str, float]:
        """The largest process of each role, MiB."""
        found: dict[str, float] = {}
        for pid, mib in self._peak.copy().items():
            role = self._role.get(pid, OTHER)
            found[role] = max(found.get(role, 0.0), mib)
        return found

    def processes(self) -> dict[str, int]:
        """How many processes of each role there were."""
        roles = [self._role.get(pid, OTHER) for pid in self._peak]
        return {role: roles.count(role) for role in sorted(set(roles))}

    def _run(self) -> None:
        while not self._stop.wait(EVERY_S):
            for pid in _tree(os.getpid()):
                self._look(pid)

    def _look(self, pid: int) -> None:
        try:
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return  # it ended
        mib = next((int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")), 0.0)
        self._peak[pid] = max(self._peak.get(pid, 0.0), mib)
        # A worker of Ray bears the name of what it does now: what it did once stays its role.
        for role, word in self._roles.items():
            if word in command:
                self._role.setdefault(pid, role)


def _tree(pid: int) -> Iterator[int]:
    """Yield a process and all below it."""
    yield pid
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):  # it ended
            for child in children.read_text().split():
                yield from _tree(int(child))
