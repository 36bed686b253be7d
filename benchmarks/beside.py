"""Helpers of the tests that a benchmark needs, each as a process of its own: neither imports the other."""

from __future__ import annotations

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import Report


@contextlib.contextmanager
def beside(module: str, *words: str) -> Iterator[Any]:
    """Run `python -m MODULE WORDS` until the block ends; yield the JSON that it prints once it is ready.

    Raises RuntimeError when it ends before.
    """
    command = [sys.executable, "-m", module, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        try:
            line = child.stdout.readline()
            if not line:
                raise RuntimeError(f"{module} ended with exit code {child.wait()} before it was ready")
            yield json.loads(line)
        finally:
            child.terminate()


def measured_by(module: str, words: Sequence[str]) -> tuple[int, dict[str, Any] | None]:
    """Run `python -m MODULE WORDS --measured FILE`; return its exit code and what it wrote, if anything.

    A SIGTERM or SIGINT is passed on, so that what the command started ends with it; the exit code is then that of one
    which a signal ended, whatever the command could still write.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        command = [sys.executable, "-m", module, *words, "--measured", str(path)]
        with subprocess.Popen(command) as child:
            came: list[int] = []

            def pass_on(number: int, _: object) -> None:
                came.append(number)
                child.terminate()

            before = {number: signal.signal(number, pass_on) for number in (signal.SIGTERM, signal.SIGINT)}
            try:
                code = child.wait()
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)
            code = 128 + came[0] if came else code
        return code, json.loads(path.read_text()) if path.exists() else None


def add_measured(report: Report, module: str, seed: int, *more: str) -> None:
    """Run a measuring command of the tests and add its figures and rows to `report`, also those of one that fails.

    Raises RuntimeError when it fails or is ended.
    """
    words = ["--seed", str(seed), *more, *(["--quick"] if report.quick else [])]
    code, found = measured_by(module, words)
    if found is not None:
        report.figures |= found["figures"]
        report.rows += found["rows"]
    if code != 0 or found is None:
        raise RuntimeError(f"python -m {module} ended with exit code {code}: see its output above")
