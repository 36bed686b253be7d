"""A Python process of this package for work that may end whoever does it: its start, the pipe to it, how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping

from stream_odml.ingest.wire import Pipe

ENDED_FROM_OUTSIDE = (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP)


def command(module: str) -> list[str]:
    """Return the command that runs a module of this package."""
    return [sys.executable, "-P", "-m", f"stream_odml.ingest.{module}"]


def import_path() -> dict[str, str]:
    """Return the variable by which a process imports from where this one does."""
    return {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


def how_it_ended(code: int) -> str:
    """Return in words what the exit code of a process says, negative for a signal."""
    return f"signal {-code} ({signal.strsignal(-code)})" if code < 0 else f"exit code {code}"


class Child:
    """A process that runs a module of this package, and the pipe to it."""

    def __init__(self, module: str, environment: Mapping[str, str], *, is_silent: bool = False) -> None:
        self._process = subprocess.Popen(
            command(module),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL if is_silent else None,
            env={**environment, **import_path()},
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._streams = (self._process.stdin, self._process.stdout)
        self.pipe = Pipe(self._process.stdout, self._process.stdin)
        self.pid, self.kill = self._process.pid, self._process.kill

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def end(self, wait_s: float = 0.5) -> int:
        """End it, unless it has ended; its exit code, negative for a signal."""
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()
        try:
            return self._process.wait(wait_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
