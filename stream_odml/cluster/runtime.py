"""A Ray session of our own: started, checked against what the stream needs, and left without a trace."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from stream_odml.cluster import haproxy_config
from stream_odml.cluster.ray_compat import dead_head, in_worker, kill_session, reread_environment
from stream_odml.cluster.ray_start import own_token, patience, start_ray
from stream_odml.cluster.session_folder import (
    SessionFolder,
    end_proxies,
    keep_logs,
    remove_abandoned,
    tighten,
)
from stream_odml.cluster.session_ports import PortBlock

log = logging.getLogger(__name__)
NAMESPACE = "stream_odml"
CLOCK_BACK_S = 30.0
LEARNING_NICENESS = 15
INDEXING_NICENESS = 5
"""Below learning: what has landed is to be searchable in seconds while a stage is learnt."""

# Read by Ray when its first process starts, so they must be set before `ray.init`.
LEAN_MEMORY = {
    # The allocators of Arrow, of the Delta library and of C keep free pages for each of the hundred threads that a
    # process of Ray's has: without these a driver grew by some 450 MB in an hour of pushes, a replica by 150.
    "ARROW_DEFAULT_MEMORY_POOL": "system",
    "_RJEM_MALLOC_CONF": "narenas:1,dirty_decay_ms:1000,muzzy_decay_ms:0",
    "MALLOC_ARENA_MAX": "2",
}
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_TRAIN_V2_ENABLED": "1",
    # How soon a lost worker is noticed, and how long a frozen one is waited for (Ray's own: 2 s and 10 minutes).
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
    "RAY_TRAIN_WORKER_HEALTH_CHECK_TIMEOUT_S": "60",
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    # A reading process that idles between two tasks is kept: starting one anew costs seconds at every boundary.
    "RAY_idle_worker_killing_time_threshold_ms": "600000",
    "RAY_worker_maximum_startup_concurrency": "8",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    # Two event loops in one replica hand every message to each other, and wait for the interpreter's lock each time.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "stream_odml.service.ingress:middlewares",
    # Else a Python process reads a log line of HAProxy's for every request; the replicas count their own.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Ray puts every worker at 15, replicas and proxy too. Here only what can wait (see `lower_priority`).
    "RAY_worker_niceness": "0",
    **LEAN_MEMORY,
    # Three looks that fail, and the proxy is started anew: at Ray's default of ten seconds, half a minute without one.
    "RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1",
    "RAY_SERVE_PROXY_HEALTH_CHECK_TIMEOUT_S": "5",
    # Draining waits this long even when no request is left.
    "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
}


class HeadDied(RuntimeError):
    """A process of Ray's own ended, and with it the session that this process had started."""


class ClockWentBack(HeadDied):
    """Ray's timers wait for a wall clock that was set back: it grants no resource and notices no death meanwhile."""


class PortTaken(ValueError):
    """Another process listens on a port that the stream is configured to use."""


def lower_priority(niceness: int) -> None:
    """Let processes that answer people go before this thread and those it starts, if this is a Ray worker."""
    if not in_worker():
        return
    with contextlib.suppress(PermissionError):  # where Ray already put the worker further back
        os.setpriority(os.PRIO_PROCESS, 0, niceness)


def check_port(host: str, port: int, setting: str) -> None:
    """Raise PortTaken if nothing of ours could listen on `host:port`; port 0 always passes."""
    if port == 0:
        return
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortTaken(
                f"cannot listen on {host}:{port} ({error.strerror}); "
                f"stop the process that uses it or set `{setting}` to another port"
            ) from error


def free_port(host: str = "127.0.0.1") -> int:
    """Return a TCP port that was free a moment ago."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def ray_session(
    address: str | None, *, cpus: float | None = None, gpus: float | None = None, log_dir: Path | None = None
) -> Iterator[None]:
    """Join the cluster at `address`, or start a local one whose files vanish with it. A local session keeps its
    sockets and logs in one temporary folder, removed at the end; folders that a killed session left behind are removed
    at the next start. `log_dir` keeps a copy of the logs."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None and not os.environ.get("RAY_ADDRESS"):
        with _local_session(cpus, gpus, log_dir):
            yield
        return
    with _signals_kept():
        ray.init(address=address or "auto", namespace=NAMESPACE, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


@contextlib.contextmanager
def _signals_kept() -> Iterator[None]:
    """Keep signal handlers: `ray.init` takes SIGTERM over and exits at once, so a job would not say how it ended."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@contextlib.contextmanager
def _local_session(cpus: float | None, gpus: float | None, log_dir: Path | None) -> Iterator[None]:
    remove_abandoned()
    before = dict(os.environ)
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(contextlib.closing(SessionFolder()))
        ports = stack.enter_context(contextlib.closing(PortBlock()))
        stack.callback(_restore_environment, before)
        os.environ.update(_local_environment(folder.path, ports))
        reread_environment()
        try:
            with _signals_kept():
                start_ray(folder.path, NAMESPACE, cpus, gpus, ports.agents)
            tighten(folder.path)
            yield
        except ClockWentBack:
            kill_session()
            raise
        finally:
            if dead_head():
                kill_session()
            ray.shutdown()
            end_proxies(folder.path)
            if log_dir is not None:
                _keep_logs(folder.path, log_dir)


def tighten_session() -> None:
    """Tighten what Serve has made since the start; nothing on a cluster that is not ours."""
    if folder := os.environ.get(haproxy_config.SESSION_VARIABLE):
        tighten(Path(folder))


def _restore_environment(before: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(before)
    reread_environment()


def _keep_logs(folder: Path, log_dir: Path) -> None:
    for session in sorted(folder.glob("r*")):
        try:
            keep_logs(session, log_dir)
        except OSError as error:
            log.warning("the logs of Ray could not be kept in %s: %s", log_dir, error)


class WallClock:
    """Watches the wall clock against one that nobody sets."""

    def __init__(self) -> None:
        self._ahead = time.time() - time.monotonic()

    def check(self) -> None:
        """Raise ClockWentBack when it was set back by more than a stream outlives since the check before."""
        before, self._ahead = self._ahead, time.time() - time.monotonic()
        if before - self._ahead > CLOCK_BACK_S:
            message = (
                f"the wall clock was set back by {before - self._ahead:.0f} s, and Ray stands still for as long; "
                "the same command goes on from here"
            )
            # At once: Ray may end this process while it is shut down, before its last words.
            log.error(message)
            raise ClockWentBack(message)


def _local_environment(folder: Path, ports: PortBlock) -> dict[str, str]:
    """Return variables by which sessions here share no port, file or token; those that a person has set stay."""
    fixed = {**ports.environment(), **haproxy_config.environment(folder), **own_token(folder)}
    chosen = {
        **patience(),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # Ranks on one machine talk over the loopback, whatever address the machine's name has.
        **({"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}),
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "2",
        # Nobody takes this machine away with a warning, and the process that would listen for one is started anew
        # with every worker group, just when the workers need the cores to come back.
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
        # A local head never comes back: what is left of its session need not wait for it for a minute. But whoever
        # waits in vain ends its process, so it must be longer than a busy machine may keep the head from answering.
        "RAY_gcs_rpc_server_reconnect_timeout_s": "30",
    }
    return fixed | {name: os.environ.get(name, value) for name, value in chosen.items()}
