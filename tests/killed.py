"""Processes that die at a crash point: forks of one process that has imported what they need, once for all tests."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Literal

from stream_odml.storage.crashpoints import ENVIRONMENT

START: Literal["forkserver"] = "forkserver"
SERVER = multiprocessing.get_context(START)
SERVER.set_forkserver_preload(
    [
        "tests.store.crash_scenario",
        "tests.pipeline.trunk_stream",
        "stream_odml.exchange.syncing",
        "pytorch_metric_learning.losses",
        # What the package loads when it is first called: each fork would load it for itself.
        "pyarrow.dataset",
        "scipy.linalg",
    ]
)
LIMIT_S = 600


def die_at(point: str) -> None:
    """Let this process die at a crash point that it passes from now on."""
    os.environ[ENVIRONMENT] = point


def is_killed(work: Callable[..., object], *arguments: object, point: str = "") -> bool:
    """Run a function of a module in a process of its own; whether it died at `point`.

    Raises AssertionError where it ended in any other way.
    """
    process = SERVER.Process(target=_run, args=(point, work, arguments))
    process.start()
    process.join(LIMIT_S)
    assert process.exitcode in (0, -signal.SIGKILL), (point, process.exitcode)
    return process.exitcode != 0


def _run(point: str, work: Callable[..., object], arguments: tuple[object, ...]) -> None:
    die_at(point)
    work(*arguments)
