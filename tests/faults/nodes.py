"""A Ray cluster of two nodes on one machine: the second in a network namespace, so that its cable can be cut.

Needs root and `ip` (iproute2), and a file system that both nodes see, which one machine has.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from stream_odml.cluster.runtime import _ENVIRONMENT, free_port
from tests.faults.process import descendants, of_session, send
from tests.faults.watch import wait_for

NET = "10.203.17"
NAME = f"odml{os.getpid() % 10000}"
# A partition is noticed in seconds; Ray's own settings take about a minute.
NOTICE = {
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "4",
}


def have_namespaces() -> bool:
    """Whether this process may make network namespaces."""
    return os.geteuid() == 0 and shutil.which("ip") is not None and sys.platform == "linux"


class TwoNodes:
    """Use as a context. ``head_cpus`` and ``far_cpus`` are logical; the far node comes and goes by its methods."""

    def __init__(self, head_cpus: int, far_cpus: int) -> None:
        self._cpus = (head_cpus, far_cpus)
        self._port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="n-", dir="/tmp"))
        self._head: subprocess.Popen[bytes] | None = None
        self._far: subprocess.Popen[bytes] | None = None
        self.address = f"{NET}.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        """Of every process that joins the cluster."""
        return {**_ENVIRONMENT, **NOTICE, "RAY_AUTH_MODE": "disabled", "RAY_TMPDIR": str(self._folder)}

    def __enter__(self) -> TwoNodes:
        try:
            return self._begin()
        except BaseException:
            self.__exit__()
            raise

    def _begin(self) -> TwoNodes:
        self._network()
        ports = ["--dashboard-agent-listen-port", str(free_port()), "--include-dashboard", "false"]
        temp = ["--temp-dir", str(self._folder)]
        self._head = self._start(
            ["--head", "--port", str(self._port), *temp, *ports], f"{NET}.1", self._cpus[0]
        )
        if wait_for(lambda: _answers(NET + ".1", self._port), 40) is None:
            raise AssertionError(f"the head did not start:\n{self._log()}")
        self.add()
        if "2" not in self._count():
            raise AssertionError(f"the far node did not join:\n{self._log()}")
        return self

    def __exit__(self, *_: object) -> None:
        for node in (self._far, self._head):
            _kill(node)
        _ip("link", "del", f"{NAME}h", check=False)
        _ip("netns", "del", NAME, check=False)
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.with_suffix(".log").unlink(missing_ok=True)

    def _network(self) -> None:
        _ip("netns", "add", NAME)
        _ip("link", "add", f"{NAME}h", "type", "veth", "peer", "name", f"{NAME}f")
        _ip("link", "set", f"{NAME}f", "netns", NAME)
        _ip("addr", "add", f"{NET}.1/24", "dev", f"{NAME}h")
        _ip("link", "set", f"{NAME}h", "up")
        for command in (f"addr add {NET}.2/24 dev {NAME}f", f"link set {NAME}f up", "link set lo up"):
            _ip("-n", NAME, *command.split())

    def add(self) -> None:
        """Bring the far node."""
        words = ["--address", self.address, "--dashboard-agent-listen-port", str(free_port())]
        self._far = self._start(words, f"{NET}.2", self._cpus[1], f"ip netns exec {NAME}")

    def _count(self) -> str:
        """How many nodes live; waits for the second."""
        code = (
            "import ray, sys, time; ray.init(sys.argv[1], log_to_driver=False, logging_level='ERROR')\n"
            "for _ in range(80):\n  n = sum(node['Alive'] for node in ray.nodes())\n"
            "  if n > 1: break\n  time.sleep(0.5)\nprint(n)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, self.address],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    def lose(self) -> None:
        """SIGKILL everything on the far node at one instant, as when its machine goes."""
        _kill(self._far)
        self._far = None

    def cut(self) -> None:
        """Cut the cable between the two nodes."""
        _ip("link", "set", f"{NAME}h", "down")

    def mend(self) -> None:
        """And plug it in again. A node that was given up meanwhile ends itself."""
        _ip("link", "set", f"{NAME}h", "up")

    @property
    def far_has_ended(self) -> bool:
        """Whether the far node has noticed that it was given up."""
        return self._far is None or self._far.poll() is not None

    def _start(self, words: list[str], ip: str, cpus: int, prefix: str = "") -> subprocess.Popen[bytes]:
        ray = str(Path(sys.executable).parent / "ray")
        command = [*prefix.split(), ray, "start", "--block", "--node-ip-address", ip, *words]
        with (self._folder.with_suffix(".log")).open("ab") as log:
            return subprocess.Popen(
                [*command, "--num-cpus", str(cpus), "--num-gpus", "0", "--disable-usage-stats"],
                # Else gloo takes the address of the host's name, which is this machine's own on both nodes.
                env={**os.environ, **self.environment, "GLOO_SOCKET_IFNAME": NAME + ("f" if prefix else "h")},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def _log(self) -> str:
        return self._folder.with_suffix(".log").read_text(errors="replace")[-2000:]


def _answers(host: str, port: int) -> bool:
    import socket

    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((host, port)) == 0


def _kill(node: subprocess.Popen[bytes] | None) -> None:
    if node is None:
        return
    family = {node.pid, *descendants(node.pid), *of_session(node.pid)}
    for sign in (signal.SIGSTOP, signal.SIGKILL):
        for pid in family:
            send(pid, sign)
    node.wait(30)


def _ip(*words: str, check: bool = True) -> None:
    subprocess.run(["ip", *words], check=check, capture_output=not check)


def cluster_settings(nodes: TwoNodes) -> Mapping[str, object]:
    """The `cluster` section of a stream on these nodes: one worker fits on each, and one will do."""
    return {
        "address": nodes.address,
        "cpus": None,
        "workers": 2,
        "min_workers": 1,
        "cpus_per_worker": 1.0,
        "checkpoint_s": 1.0,
    }
