"""A real Prometheus on a temporary folder and a free port, and its HTTP API; it ends with the test."""

from __future__ import annotations

import contextlib
import json
import math
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

Vector = list[tuple[dict[str, str], float]]


class Server:
    """Asks one running Prometheus."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def _get(self, path: str, **query: str) -> Any:
        url = f"{self.url}{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            body = json.load(answer)
        assert body["status"] == "success", body
        return body["data"]

    def query(self, expression: str) -> Vector:
        """Evaluate ``expression`` now: labels and finite values (a quantile of nothing is NaN, and left out)."""
        data = self._get("/api/v1/query", query=expression)
        assert data["resultType"] == "vector", data
        found = [(sample["metric"], float(sample["value"][1])) for sample in data["result"]]
        return [(labels, value) for labels, value in found if math.isfinite(value)]

    def targets(self) -> dict[str, str]:
        """Health (`up`, `down`, `unknown`) of each target, by its URL."""
        active = self._get("/api/v1/targets")["activeTargets"]
        return {target["scrapeUrl"]: target["health"] for target in active}

    def rule_errors(self) -> dict[str, str]:
        """Rules whose last evaluation failed, with the error."""
        groups = self._get("/api/v1/rules")["groups"]
        return {r["name"]: r["lastError"] for g in groups for r in g["rules"] if r.get("lastError")}

    def ready(self) -> bool:
        """Whether it answers queries yet."""
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def wait_for(what: str, condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait until ``condition`` holds. Raises AssertionError after ``timeout_s``."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} within {timeout_s:g} s"
        time.sleep(0.1)


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def prometheus(program: str, config: Path) -> Iterator[Server]:
    """Run Prometheus on ``config`` with its data beside it; stop it at the end, whatever happened."""
    port = free_port()
    log = config.parent / "prometheus.log"
    command = [
        program,
        f"--config.file={config}",
        f"--storage.tsdb.path={config.parent / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with log.open("wb") as stream, subprocess.Popen(command, stdout=stream, stderr=stream) as process:
        try:
            server = Server(port)
            wait_for("Prometheus", lambda: process.poll() is not None or server.ready())
            assert process.poll() is None, log.read_text(encoding="utf-8")
            yield server
        finally:
            process.terminate()
            try:
                process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                process.kill()
