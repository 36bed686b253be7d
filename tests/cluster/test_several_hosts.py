"""A stream over two hosts (network namespaces): training on one, search on the other, both watched from a third.

    pytest -m slow tests/cluster/test_several_hosts.py

Needs root and `ip`; nothing but the bridge joins the two, so an address that only works on its own host fails here.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import yaml

from tests.cluster.namespaces import can_make_namespaces, two_hosts
from tests.cluster.two_nodes import Place, two_nodes
from tests.faults.harness import broken_promises, land_shards, open_store, small_config

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
STREAM_ODML = [sys.executable, "-m", "stream_odml.cli.main"]
PORT = 8077


def targets(root: Path) -> dict[str, str]:
    """Announced exporters: host:port by name."""
    found = (root / "metrics").glob("*.json")
    return {path.stem.split("-")[0]: json.loads(path.read_text())[0]["targets"][0] for path in found}


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=5) as answer:
        return str(answer.read().decode())


def until_served(url: str, version: str, within_s: float = 240.0) -> None:
    deadline = time.monotonic() + within_s
    while json.loads(fetch(f"{url}/readyz"))["version"] != version:
        assert time.monotonic() < deadline, f"{url} never served {version}"
        time.sleep(0.5)


@pytest.mark.skipif(not can_make_namespaces(), reason="NOT CHECKED: needs root and the tool `ip`")
def test_training_and_search_on_hosts_of_their_own(tmp_path: Path) -> None:
    root = tmp_path / "root"
    config = small_config(
        root,
        cluster={"workers": 1, "cpus_per_worker": 0.5, "worker_labels": {"role": "train"}},
        service={"host": "0.0.0.0", "port": PORT, "num_cpus": 0.1, "labels": {"role": "search"},
                 "metrics_host": "0.0.0.0"},
        metrics={"host": "0.0.0.0", "port": 9477},
    )  # fmt: skip
    landed = land_shards(root, 3)
    with two_hosts() as (a, b):
        train, search = Place(2, "train", a.ip, a.prefix), Place(1, "search", b.ip, b.prefix)
        with two_nodes(tmp_path / "ray.log", train, search) as cluster:
            job = [*STREAM_ODML, "submit", str(config), "--address", cluster.jobs_url]
            out = tmp_path / "job.log"
            with out.open("wb") as log:
                follower = subprocess.Popen(
                    [*job, "--job-id", "hosts"], env=dict(cluster.environment), stdout=log, stderr=log
                )
            deadline = time.monotonic() + 240
            while not (root / "endpoints.json").exists() or len(open_store(root).tree.versions) < 2:
                assert time.monotonic() < deadline, out.read_text()[-3000:]
                assert follower.poll() is None, out.read_text()[-3000:]
                time.sleep(0.5)
            until_served(f"http://{b.ip}:{PORT}", open_store(root).tree.head)

            where = targets(root)
            assert where["replica"].startswith(f"{b.ip}:"), "search shares its host with training"
            assert "stream_odml_served_version_info" in fetch(f"http://{where['replica']}/metrics")
            assert "stream_odml_stages_committed_total 1.0" in fetch(f"http://{where['driver']}/metrics")

            elsewhere = yaml.safe_load(config.read_text())
            elsewhere["service"]["labels"] = {"role": "nowhere"}
            elsewhere |= {"name": "other", "root": str(tmp_path / "other")}
            elsewhere["service"]["port"], elsewhere["metrics"]["port"] = 8078, 9478
            (tmp_path / "other.yaml").write_text(yaml.safe_dump(elsewhere))
            refused = subprocess.run(
                [*STREAM_ODML, "submit", str(tmp_path / "other.yaml"), "--address", cluster.jobs_url],
                env=dict(cluster.environment), capture_output=True, text=True, timeout=600, check=False,
            )  # fmt: skip
            assert refused.returncode == 1
            assert "ray start --labels role=nowhere" in refused.stdout

            stop = [*STREAM_ODML, "stop", "hosts", "--address", cluster.jobs_url]
            subprocess.run(stop, env=dict(cluster.environment), check=True, timeout=600)
            assert follower.wait(240) == 0
    assert broken_promises(open_store(root), landed, learnt_shards=3) == []
