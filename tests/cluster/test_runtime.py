"""What is checked before Ray is asked for anything."""

from __future__ import annotations

import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from stream_odml.cluster.placement import ClusterTooSmall, Role, check_resources
from stream_odml.cluster.runtime import (
    ClockWentBack,
    PortTaken,
    WallClock,
    check_port,
    free_port,
)
from stream_odml.cluster.session_folder import remove_abandoned
from tests.seams.sessions import ended_pid


def test_a_cluster_that_would_deadlock_is_refused() -> None:
    asked = [Role("training", "", 2, cpus=1.0), Role("reading", "", 1, cpus=0.2)]
    with pytest.raises(ClusterTooSmall, match=r"needs 2\.2 CPU .* has 2:\n  training +2 x 1 CPU"):
        check_resources(asked, available=2)


def test_a_budget_that_fits_exactly_is_accepted() -> None:
    check_resources([Role("training", "", 2, cpus=0.4), Role("indexers", "", 1, cpus=0.2)], available=1.0)


def test_a_taken_port_is_named_with_its_setting() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"127\.0\.0\.1:{port} .*`service\.port`"):
            check_port("127.0.0.1", port, "service.port")


def test_free_ports_and_port_zero_pass() -> None:
    check_port("127.0.0.1", free_port(), "service.port")
    check_port("127.0.0.1", 0, "service.port")


def test_a_wall_clock_that_goes_back_far_is_noticed_and_one_that_goes_forward_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("time.monotonic", lambda: 50.0)
    clock = WallClock()
    for now[0] in (8200.0, 8190.0):  # far forward, then back by little, as time servers do it
        clock.check()
    now[0] = 990.0
    with pytest.raises(ClockWentBack, match="set back by 7200 s"):
        clock.check()
    clock.check()


def test_a_proxy_that_outlived_its_session_is_ended_with_what_the_session_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    proxies = []
    for pid in (ended_pid(), 1):  # of a session that is gone, and of one that runs
        folder = tmp_path / f"odml-{pid}-x"
        (folder / "h").mkdir(parents=True)
        sleeps = "import time; print(flush=True); time.sleep(60)"
        sleeper = [sys.executable, "-c", sleeps, f"{folder}/h/haproxy.cfg"]
        proxies.append(subprocess.Popen(sleeper, stdout=subprocess.PIPE))
        out = proxies[-1].stdout
        assert out is not None
        out.readline()  # it is not known by its command line before it runs
    try:
        remove_abandoned()
        assert proxies[0].wait(timeout=60) != 0
        assert proxies[1].poll() is None
        assert [path.name for path in tmp_path.iterdir()] == ["odml-1-x"]
    finally:
        for proxy in proxies:
            proxy.kill()
            proxy.communicate()
