"""Start Ray on this machine for one session: on the loopback only, with a token of its own, and with patience."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import ray

from stream_odml.cluster.ray_compat import only_loopback
from stream_odml.cluster.session_folder import kill_processes
from stream_odml.wording import first_line

log = logging.getLogger(__name__)
ATTEMPTS = 3
PATIENCE_S = 120
"""How long one attempt waits for a process of Ray's to appear. On a machine with forty busy processes for a core Ray
needs a minute and a half; its own limit is 30 s."""


class RayNotStarted(RuntimeError):
    """Ray did not start on this machine, however often it was tried."""


def patience() -> dict[str, str]:
    """Return the variables by which Ray's processes wait longer for each other while they start."""
    return {
        "RAY_raylet_start_wait_time_s": str(PATIENCE_S),
        "RAY_gcs_server_port_wait_time_s": str(PATIENCE_S),
        "RAY_gcs_rpc_server_connect_timeout_s": str(PATIENCE_S),
        "RAY_agent_register_timeout_ms": str(1000 * PATIENCE_S),
        "RAY_worker_register_timeout_seconds": str(2 * PATIENCE_S),
        "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": str(PATIENCE_S),
        "RAY_SERVE_HAPROXY_STARTUP_TIMEOUT_S": str(PATIENCE_S),
    }


def own_token(folder: Path) -> dict[str, str]:
    """Write a new token, for its owner alone, and return the variables by which every process of the session uses it.
    RAY_AUTH_MODE=disabled in the environment is obeyed."""
    if os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        return {}
    os.environ.pop("RAY_AUTH_TOKEN", None)  # of some cluster; it would go before the file
    path = folder / "token"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


def start_ray(
    folder: Path,
    namespace: str,
    cpus: float | None,
    gpus: float | None,
    agent_ports: Callable[[int], Mapping[str, int]],
) -> None:
    """Start a head below `folder` that listens on the loopback. Raises RayNotStarted after several attempts."""
    began = time.monotonic()
    for attempt in range(ATTEMPTS):
        try:
            with only_loopback(agent_ports(attempt), PATIENCE_S), _nothing_for_others():
                ray.init(
                    address="local",
                    namespace=namespace,
                    num_cpus=cpus,
                    num_gpus=gpus,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    _temp_dir=str(folder / f"r{attempt}"),
                )
            return
        except ValueError:
            raise  # what was asked cannot be: no later attempt could do it
        except Exception as error:  # Ray raises bare ones where a process of its own was too slow
            failure = error
            log.warning("Ray did not start (%s); attempt %d of %d", first_line(error), attempt + 1, ATTEMPTS)
        ray.shutdown()
        kill_processes(folder)
    raise RayNotStarted(_remedy(failure, time.monotonic() - began)) from failure


def _remedy(failure: Exception, seconds: float) -> str:
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return (
        f"Ray did not start in {ATTEMPTS} attempts and {seconds:.0f} s: {first_line(failure)}\n"
        f"the load of this machine is {load:.0f} on {cores} core(s); memory, disk and /dev/shm may be full as well\n"
        "end other work and run the same command again, or join a running cluster: --address HOST:PORT"
    )


@contextlib.contextmanager
def _nothing_for_others() -> Iterator[None]:
    """Set a umask, which processes inherit: what they write is never writable by every user."""
    before = os.umask(0o077)
    os.umask(before | 0o002)
    try:
        yield
    finally:
        os.umask(before)
