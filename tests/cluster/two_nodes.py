"""A Ray cluster of two nodes on this machine, by `ray start` as an operator would, with token authentication.

As a command, `python -m tests.cluster.two_nodes LOG`, it starts nodes of one CPU each, prints the cluster's address
and a client's environment as JSON, and ends them when it is terminated.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from tests.faults.process import descendants

RAY = str(Path(sys.executable).with_name("ray"))
START_S = 300.0


@dataclass(frozen=True)
class TwoNodes:
    """A running cluster: where its jobs go, and what a client's environment must hold."""

    jobs_url: str
    address: str
    environment: Mapping[str, str] = field(repr=False)
    folder: Path

    def uploaded(self) -> list[list[Path]]:
        """The files of every working directory that a job has brought along."""
        packages = self.folder.glob("session_2*/runtime_resources/working_dir_files/*")
        return [[f for f in p.rglob("*") if f.is_file()] for p in packages if p.is_dir()]


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago, no two the same."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]


@dataclass(frozen=True)
class Place:
    """Where a node runs: behind a command such as `ip netns exec NAME`, at an address of its own."""

    cpus: int
    role: str
    ip: str = "127.0.0.1"
    prefix: tuple[str, ...] = ()


@contextlib.contextmanager
def two_nodes(
    output: Path, head: Place = Place(1, "first"), worker: Place = Place(2, "second")
) -> Iterator[TwoNodes]:
    """Start head and worker, and end them with all that they started. ``output`` is for their logs.

    The nodes are labelled role=first and role=second, or as their places say.
    """
    # A socket's path may have 107 bytes: the folder of a test is too deep.
    folder = Path(tempfile.mkdtemp(prefix="odml2-"))
    gcs, jobs, client, *agents = free_ports(5)
    environment = {**_environment(), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    first = ["--head", f"--port={gcs}", f"--dashboard-port={jobs}", f"--ray-client-server-port={client}"]
    first += [f"--dashboard-host={head.ip}", f"--temp-dir={folder}", "--disable-usage-stats"]
    started: list[subprocess.Popen[bytes]] = []
    try:
        with output.open("ab") as log:
            started.append(
                _start(head, [*first, f"--dashboard-agent-listen-port={agents[0]}"], environment, folder, log)
            )
            _until_answers(f"http://{head.ip}:{jobs}/api/version", environment, started[0], output)
            second = [f"--address={head.ip}:{gcs}", f"--dashboard-agent-listen-port={agents[1]}"]
            started.append(_start(worker, second, environment, folder, log))
            _until_joined(f"http://{head.ip}:{jobs}", environment, output)
            yield TwoNodes(f"http://{head.ip}:{jobs}", f"{head.ip}:{gcs}", environment, folder)
    finally:
        for process in reversed(started):
            _end(process)
        for logs in folder.glob("session_2*/logs/serve"):  # why a service did not come up
            shutil.copytree(logs, output.with_suffix(".serve"), dirs_exist_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _start(
    place: Place, options: list[str], environment: Mapping[str, str], folder: Path, log: IO[bytes]
) -> subprocess.Popen[bytes]:
    command = [
        *place.prefix,
        RAY,
        "start",
        "--block",
        f"--node-ip-address={place.ip}",
        f"--num-cpus={place.cpus}",
    ]
    command += ["--num-gpus=0", f"--labels=role={place.role}", *options]
    own = {**environment, **_proxy(folder / place.role)}
    return subprocess.Popen(command, env=own, stdout=log, stderr=log, start_new_session=True)


def _environment() -> dict[str, str]:
    keep = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return {
        **keep,
        "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_TRAIN_V2_ENABLED": "1",
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "1",
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "2",
    }


def _proxy(folder: Path) -> dict[str, str]:
    """Nodes that share a disk, and sessions that share a machine, must not meet each other's proxy."""
    metrics, stats = free_ports(2)
    return {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats),
    }


def _until_joined(url: str, environment: Mapping[str, str], output: Path) -> None:
    request = _asking(f"{url}/nodes?view=summary", environment)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            nodes = json.load(answer)["data"]["summary"]
            if sum(node["raylet"].get("state") == "ALIVE" for node in nodes) == 2:
                return
        time.sleep(0.2)
    raise AssertionError(f"the second node never joined:\n{output.read_text(errors='replace')[-3000:]}")


def _asking(url: str, environment: Mapping[str, str]) -> urllib.request.Request:
    return urllib.request.Request(url, headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"})


def _until_answers(
    url: str, environment: Mapping[str, str], process: subprocess.Popen[bytes], output: Path
) -> None:
    request = _asking(url, environment)
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=2):
            return
        time.sleep(0.2)
    raise AssertionError(f"{url} does not answer:\n{output.read_text(errors='replace')[-3000:]}")


def _end(process: subprocess.Popen[bytes]) -> None:
    """`ray start --block` ends what it started when it is told to; what then still lives is killed."""
    pids = [process.pid, *descendants(process.pid)]
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(5)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait(10)


def main(output: Path) -> None:
    """Keep two nodes of one CPU each until terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    with two_nodes(output, Place(1, "first"), Place(1, "second")) as cluster:
        print(json.dumps({"address": cluster.address, "environment": dict(cluster.environment)}), flush=True)
        signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
