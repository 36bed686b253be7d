"""Seam 30: a busy machine is waited for, then told in three lines; no failure reaches a person as a traceback."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from stream_odml.cli.failures import ShortFormatter, message_of, tell_of_threads
from stream_odml.client import ServiceError
from stream_odml.cluster import ray_start
from stream_odml.cluster.ray_start import ATTEMPTS, RayNotStarted, start_ray

BUSY = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


class Starts:
    """`ray.init` that fails as often as it is told."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.folders: list[str] = []

    def __call__(self, **options: Any) -> None:
        self.folders.append(options["_temp_dir"])
        if self.failures:
            raise self.failures.pop(0)


def no_ports(attempt: int) -> dict[str, int]:
    return {}


def test_a_start_that_was_too_slow_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(Exception(BUSY), ConnectionError("no GCS"))
    monkeypatch.setattr(ray, "init", starts)
    start_ray(tmp_path, "test", 1, 0, no_ports)
    assert len(set(starts.folders)) == 3  # what a failed one left is in nobody's way


def test_after_the_last_attempt_three_lines_say_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ray, "init", Starts(*[Exception(BUSY)] * ATTEMPTS))
    with pytest.raises(RayNotStarted) as reported:
        start_ray(tmp_path, "test", 1, 0, no_ports)
    lines = str(reported.value).splitlines()
    assert len(lines) == 3
    assert "timed out during startup" in lines[0]
    assert "load" in lines[1]
    assert "run the same command again" in lines[2]


def test_what_no_attempt_can_do_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts(*[ValueError("num_cpus is -1")] * 2)
    monkeypatch.setattr(ray, "init", starts)
    with pytest.raises(ValueError, match="num_cpus"):
        start_ray(tmp_path, "test", -1, 0, no_ports)
    assert len(starts.folders) == 1


def test_ray_waits_for_longer_than_a_busy_machine_needs() -> None:
    waits = {
        name: float(value) / (1000 if name.endswith("_ms") else 1)
        for name, value in ray_start.patience().items()
    }
    assert min(waits.values()) >= 100


class Panic(BaseException):
    """As pyo3 raises it for a panic of Rust code."""


class RemoteError(Exception):
    """As Ray wraps what a task raised: a trace as text, and the cause."""

    def __init__(self, cause: Exception) -> None:
        super().__init__("Traceback (most recent call last):\n  File x\nValueError: hidden")
        self.cause = cause


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ValueError("say which"), "say which"),
        (Exception("bare"), "Exception: bare; run `stream-odml --debug ...`"),
        (AssertionError(), "AssertionError; run"),
        (KeyError("x"), "KeyError: 'x'; run"),
        (Panic("index out of bounds"), "Panic: index out of bounds; run"),
        (RemoteError(ValueError("the cause")), "the cause"),
        (
            ServiceError(404, "unknown_subject", "no class owll", "nearest: owl"),
            "no class owll; nearest: owl",
        ),
        (ServiceError(401, "unauthorized", "no token was sent", ""), "no token was sent"),
        (
            RuntimeError("Traceback (most recent call last):\n  File y\nOSError: disk full"),
            "OSError: disk full",
        ),
    ],
)
def test_every_failure_is_one_message(error: BaseException, words: str) -> None:
    reported = message_of(error)
    assert reported.startswith(words)
    assert "Traceback" not in reported


SCRIPT = """
import os, sys
import stream_odml.cli.stream_run
import stream_odml.config.stream as config
from stream_odml.cli.main import main

class Panic(BaseException): pass

for number, (error, words) in enumerate({cases}):
    def fail(*_, **__):
        raise error

    if not os.fork():  # a process of its own for each case, of which only the first pays for imports
        os.dup2(os.open(f"{{sys.argv[1]}}/{{number}}", os.O_CREAT | os.O_WRONLY), 2)
        config.load_config = fail
        sys.argv = ["stream-odml", *words, "run", "x.yaml"]
        main()
        os._exit(0)
    print(os.waitstatus_to_exitcode(os.wait()[1]))
"""
FAILURES = ["Exception('bare')", "Panic('rust')", "AssertionError()", "MemoryError()"]


def test_a_command_that_fails_in_any_way_shows_no_trace_unless_asked(tmp_path: Path) -> None:
    cases = [(error, words) for error in FAILURES for words in ("[]", "['--debug']")]
    written = f"[{', '.join(f'({error}, {words})' for error, words in cases)}]"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT.format(cases=written), str(tmp_path)], capture_output=True, text=True,
        env={**os.environ, "COLUMNS": "200"}, timeout=120, check=True,
    )  # fmt: skip
    assert done.stdout.split() == ["1"] * len(cases)
    for number, (error, words) in enumerate(cases):
        reported = (tmp_path / str(number)).read_text()
        assert ("Traceback" in reported) is (words != "[]"), error
        assert words != "[]" or "error:" in reported, error


def test_neither_a_thread_nor_a_log_line_shows_a_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    reported: list[str] = []
    tell_of_threads(reported.append)
    thread = threading.Thread(target=lambda: 1 // 0, name="watcher")
    thread.start()
    thread.join()
    assert len(reported) == 1
    assert reported[0].startswith("watcher: ZeroDivisionError")
    try:
        raise OSError("disk full")
    except OSError:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "cannot commit", None, sys.exc_info())
    text = ShortFormatter().format(record)
    assert "Traceback" not in text
    assert "OSError: disk full" in text
