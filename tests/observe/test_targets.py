"""How Prometheus learns where an exporter is, without anybody configuring an address."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

from stream_odml.observe.targets import announce, reachable, targets_folder, withdraw


def test_an_exporter_is_announced_and_withdrawn(tmp_path: Path) -> None:
    path = announce(tmp_path / "metrics", "driver", "10.0.0.1:9464", {"zone": "a"})
    (entry,) = json.loads(path.read_text())
    assert entry["targets"] == ["10.0.0.1:9464"]
    assert entry["labels"]["zone"] == "a"
    withdraw(path)
    assert list((tmp_path / "metrics").iterdir()) == []


def test_a_successor_keeps_its_announcement(tmp_path: Path) -> None:
    """The former driver may end after Ray has started the next one elsewhere."""
    path = announce(tmp_path, "driver", "10.0.0.1:9464", {})
    moved = [{"targets": ["10.0.0.2:9464"], "labels": {"__meta_host": "elsewhere", "__meta_pid": "7"}}]
    path.write_text(json.dumps(moved))
    withdraw(path)
    assert json.loads(path.read_text()) == moved


def test_only_the_dead_of_this_host_are_withdrawn(tmp_path: Path) -> None:
    for name, host, pid in (
        ("dead", socket.gethostname(), 999_999_999),
        ("alive", socket.gethostname(), os.getpid()),
        ("elsewhere", "another-host", 999_999_999),
    ):
        labels = {"__meta_host": host, "__meta_pid": str(pid)}
        (tmp_path / f"replica-{name}.json").write_text(json.dumps([{"targets": [], "labels": labels}]))
    announce(tmp_path, "driver", "10.0.0.1:9464", {})
    assert sorted(p.stem for p in tmp_path.iterdir()) == ["driver", "replica-alive", "replica-elsewhere"]


def test_an_exporter_on_every_interface_gives_the_address_of_its_node() -> None:
    assert reachable("10.1.2.3", "10.9.9.9") == "10.1.2.3"
    assert {reachable(host, "10.9.9.9") for host in ("0.0.0.0", "::", "")} == {"10.9.9.9"}


def test_a_root_in_an_object_store_has_no_folder_for_targets(tmp_path: Path) -> None:
    assert targets_folder("s3://bucket/stream", None) is None
    assert targets_folder("s3://bucket/stream", tmp_path) == tmp_path
    assert targets_folder("/data/stream", None) == Path("/data/stream/metrics")
