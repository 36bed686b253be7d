"""Streams as jobs of a cluster of two nodes with token authentication, submitted in both ways, stopped, resumed."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from stream_odml.store.store import Store
from tests.cluster.two_nodes import RAY, TwoNodes, free_ports, two_nodes
from tests.faults.harness import CATEGORIES, broken_promises, land_shards, open_store, small_config

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
STREAM_ODML = [sys.executable, "-m", "stream_odml.cli.main"]
SMALL_BYTES = 16_384


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    with two_nodes(tmp_path_factory.mktemp("nodes") / "ray.log") as nodes:
        yield nodes


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A stream that serves, closes a task every three shards, and lies beside data that no job should upload."""
    (tmp_path / "photos.bin").write_bytes(bytes(1 << 20))
    port, metrics = free_ports(2)
    return small_config(
        tmp_path / "root",
        cluster={"workers": 1, "cpus_per_worker": 0.5, "checkpoint_s": 0.5},
        service={"port": port, "num_cpus": 0.1},
        metrics={"port": metrics},
    )


def submit(cluster: TwoNodes, config: Path, *options: str) -> subprocess.Popen[str]:
    command = [*STREAM_ODML, "submit", str(config), "--address", cluster.jobs_url, *options]
    return start(cluster, command)


def start(cluster: TwoNodes, command: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command, env=dict(cluster.environment), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def ended(process: subprocess.Popen[str], within_s: float = 240.0) -> tuple[int, str]:
    out, _ = process.communicate(timeout=within_s)
    return process.returncode, out


def until(condition: Callable[[], bool], what: str, within_s: float = 180.0) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.2)


def learnt(root: Path) -> int:
    """Stages behind the head, 0 where there is no root yet."""
    try:
        store = Store.open(str(root))
    except (OSError, ValueError):
        return 0
    return len(store.tree.lineage(store.tree.head)) - 1 if store.tree.moves else 0


def served(config: Path) -> str | None:
    """Version that the service answers with, or None while none answers."""
    port = yaml.safe_load(config.read_text())["service"]["port"]
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=5) as answer:
            return str(json.load(answer)["version"])
    except (OSError, urllib.error.HTTPError, KeyError):
        return None


def test_a_stream_is_submitted_stopped_and_resumed_in_both_ways(cluster: TwoNodes, config: Path) -> None:
    root = config.with_name("root")
    landed = land_shards(root, 3)
    follower = submit(cluster, config, "--job-id", "first")
    until(lambda: learnt(root) == 1, "the first stage is committed")
    until(lambda: served(config) == open_store(root).tree.head, "the first stage is served")

    stop = start(cluster, [*STREAM_ODML, "stop", "first", "--address", cluster.jobs_url])
    assert ended(stop) == (0, "first is stopped\n")
    code, log = ended(follower)
    assert code == 0, log
    assert "submitted first" in log
    assert "3/3 searchable" in log, "the job's log was not followed"
    assert "interrupted: ending the stream" in log, f"it was not ended cleanly:\n{log}"
    assert served(config) is None
    assert not (root / "endpoints.json").exists()
    assert not (root / "lease.json").exists() or json.loads((root / "lease.json").read_text()).get("released")

    landed |= land_shards(root, 3, first=3)
    plain = [RAY, "job", "submit", f"--address={cluster.jobs_url}", "--"]
    code, log = ended(start(cluster, [*plain, "stream-odml", "run", str(config), "--until-idle", "4"]))
    assert code == 0, log
    assert learnt(root) == 2

    landed |= land_shards(root, 3, first=6)
    code, log = ended(submit(cluster, config, "--until-idle", "4"))
    assert code == 0, log
    assert learnt(root) == 3
    assert broken_promises(open_store(root), landed, learnt_shards=9) == []
    assert len(landed) >= 9 * CATEGORIES

    for files in cluster.uploaded():
        assert [file.name for file in files] == ["stream.yaml"]
        assert sum(file.stat().st_size for file in files) < SMALL_BYTES
    assert cluster.uploaded()


def test_a_job_that_cannot_run_ends_with_its_code_and_its_reason(cluster: TwoNodes, config: Path) -> None:
    plain = config.with_name("broken.yaml")
    plain.write_text(config.read_text() + "wings: 2\n")
    code, log = ended(
        start(
            cluster,
            [RAY, "job", "submit", f"--address={cluster.jobs_url}", "--", "stream-odml", "run", str(plain)],
        )
    )
    assert code != 0
    assert "wings: unknown key" in log

    greedy = config.with_name("greedy.yaml")
    wanted = yaml.safe_load(config.read_text())
    wanted["cluster"] = {"workers": 8, "cpus_per_worker": 2}
    greedy.write_text(yaml.safe_dump(wanted))
    code, log = ended(submit(cluster, greedy))
    assert code == 1
    assert "needs" in log
    assert "CPU" in log


def test_a_relative_root_is_refused_before_it_is_submitted(cluster: TwoNodes, config: Path) -> None:
    wanted = yaml.safe_load(config.read_text()) | {"root": "stream-root"}
    config.write_text(yaml.safe_dump(wanted))
    code, log = ended(submit(cluster, config))
    assert code == 1
    assert "absolute path" in log


def test_a_wrong_token_is_named(cluster: TwoNodes, config: Path) -> None:
    environment = dict(cluster.environment) | {"RAY_AUTH_TOKEN": "0" * 64}
    done = subprocess.run(
        [*STREAM_ODML, "submit", str(config), "--address", cluster.jobs_url],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "RAY_AUTH_TOKEN" in done.stderr
    assert "Traceback" not in done.stderr
