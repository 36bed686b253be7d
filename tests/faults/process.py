"""A stream as a user runs it, in a process of its own that can be killed with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

TAIL = 3000


class StreamProcess:
    """`stream-odml run` in a session of its own; its output goes to ``<config>.log``."""

    def __init__(
        self, config: Path, *arguments: str, environment: Mapping[str, str] | None = None, prefix: str = ""
    ) -> None:
        command = [
            *prefix.split(),
            sys.executable,
            "-m",
            "stream_odml.cli.main",
            "run",
            str(config),
            *arguments,
        ]
        self.output = config.with_suffix(".log")
        with self.output.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> StreamProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill_tree()

    @property
    def pid(self) -> int:
        """Of the process that started all others."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether that process is gone."""
        return self._process.poll() is not None

    def wait(self, timeout_s: float = 180.0) -> int:
        """The exit code, when it ended by itself."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s} s:\n{self.tail()}") from None

    def tail(self) -> str:
        """The end of its output."""
        return self.output.read_text(errors="replace")[-TAIL:]

    def interrupt(self) -> None:
        """As Ctrl-C does."""
        self._process.send_signal(signal.SIGINT)

    def kill_tree(self) -> None:
        """SIGKILL the process and all that descends from it, at one instant."""
        # Who lost its parent is no descendant any more, but still of the session or of a family that we know.
        family = {self.pid, *descendants(self.pid), *of_session(self.pid)}
        for sign in (signal.SIGSTOP, signal.SIGKILL):  # stopped first, so that none can start another
            for pid in family:
                send(pid, sign)
        self._process.wait(30)

    def until(self, condition: Callable[[], bool], timeout_s: float = 120.0) -> None:
        """Wait until ``condition`` holds, every 20 ms."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline or self.has_ended:
                raise AssertionError(f"the condition never held:\n{self.tail()}")
            time.sleep(0.02)


def send(pid: int, sign: signal.Signals) -> None:
    """Signal a process that may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, sign)


def _stats() -> Iterator[tuple[int, list[str]]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if len(fields) > 3:  # else it went while it was read
                yield int(stat.parent.name), fields


def descendants(pid: int) -> Iterator[int]:
    """Ids of all processes below ``pid``."""
    children: dict[int, list[int]] = {}
    for child, fields in _stats():
        children.setdefault(int(fields[1]), []).append(child)
    stack = list(children.get(pid, []))
    while stack:
        child = stack.pop()
        yield child
        stack += children.get(child, [])


def family_of(session: int) -> list[int]:
    """A session's processes and all below them, in one look."""
    stats = [(pid, int(fields[1]), int(fields[3])) for pid, fields in _stats()]
    found = {pid for pid, _, of in stats if of == session} | {session}
    for pid, parent, _ in sorted(stats):  # a child's id is above its parent's, but for a rare wrap
        if parent in found:
            found.add(pid)
    return list(found)


def of_session(session: int) -> list[int]:
    """Ids of all processes of a session, orphans included."""
    return [pid for pid, fields in _stats() if int(fields[3]) == session]


def survivors(pids: list[int], within_s: float) -> list[str]:
    """Names of the processes that still run after ``within_s`` seconds; a zombie runs no more."""
    deadline = time.monotonic() + within_s
    while True:
        alive = [name for pid in pids if (name := _running(pid)) is not None]
        if not alive or time.monotonic() > deadline:
            return alive
        time.sleep(0.1)


def _running(pid: int) -> str | None:
    try:
        name, _, rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")
    except OSError:
        return None
    return None if rest.split()[0] in "ZX" else name


def is_running(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    return _running(pid) is not None
