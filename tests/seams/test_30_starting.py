"""Seam 30: a busy machine is waited for, then told in three lines; no failure reaches a person as a traceback."""

from __future__ import annotations

import logging
import signal
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import ray

from stream_odml.cli.failures import ShortFormatter, message_of, tell_of_threads
from stream_odml.cli.main import main
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


FAILURES = [Exception("bare"), Panic("rust"), AssertionError(), MemoryError()]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
def test_a_command_that_fails_in_any_way_shows_no_trace_unless_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("stream_odml.config.stream.load_config", fail)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["stream-odml", "run", "x.yaml"])
    with pytest.raises(SystemExit) as ended:
        main()
    reported = capsys.readouterr().err
    assert ended.value.code == 1
    assert reported.startswith("error: ")
    assert "Traceback" not in reported
    monkeypatch.setattr(sys, "argv", ["stream-odml", "--debug", "run", "x.yaml"])
    with pytest.raises(type(error)) as shown:  # Python itself then shows the trace
        main()
    assert shown.value is error


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
