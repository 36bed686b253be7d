"""The compose file: its stream is one that we run, every mounted file is there, and its parts find each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from stream_odml import __version__
from stream_odml.config.stream import load_config
from tests.deploy.paths import DEPLOY

COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text("utf-8"))
SERVICES = COMPOSE["services"]


def mounts(service: str) -> dict[str, str]:
    """Return what is mounted, by the place within the container."""
    pairs = (volume.removesuffix(":ro").rsplit(":", 1) for volume in SERVICES[service]["volumes"])
    return {inside: outside for outside, inside in pairs}


@pytest.mark.parametrize("service", sorted(SERVICES))
def test_every_mounted_file_and_volume_is_there(service: str) -> None:
    for outside in mounts(service).values():
        assert outside.startswith("${") or outside in COMPOSE["volumes"] or (DEPLOY / outside).exists(), (
            outside
        )


def test_the_stream_is_one_that_we_run_on_what_is_mounted() -> None:
    stream = SERVICES["stream"]
    assert stream["command"][:2] == ["stream-odml", "run"]
    config = load_config(DEPLOY / mounts("stream")[stream["command"][2]])
    assert Path(config.root).parent == Path("/data")
    assert config.source.path in mounts("stream")
    assert config.service.host == "0.0.0.0"
    assert all(port.startswith("127.0.0.1:") for port in stream["ports"])
    assert f"127.0.0.1:{config.service.port}:{config.service.port}" in stream["ports"]
    assert stream["image"].endswith(f":{__version__}")


def test_prometheus_finds_what_the_stream_announces_and_grafana_finds_prometheus() -> None:
    for service in ("prometheus", "grafana"):
        assert SERVICES[service]["network_mode"] == "service:stream"
    root = load_config(DEPLOY / "compose-stream.yaml").root
    assert f"{root}/metrics/driver.json" in (DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8")
    assert "/data" in mounts("prometheus")
    provisioned = yaml.safe_load(
        (DEPLOY / "grafana/provisioning/dashboards/stream_odml.yml").read_text("utf-8")
    )
    folder = provisioned["providers"][0]["options"]["path"]
    assert any(inside.startswith(folder) for inside in mounts("grafana"))
