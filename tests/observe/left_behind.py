"""What a person or a collector finds after a stream has run and ended: logs, traces, a profile."""

from __future__ import annotations

import json
from pathlib import Path

from stream_odml.observe.tracing import trace_id

OBSERVE = {"log_format": "json", "traces": "file", "profile_steps": 4}
"""The section of the configuration that asks for all of it."""


def assert_observed(root: Path, stream: str, version: str, shards: int) -> None:
    """Assert that each kind of process has logged, and that the spans of the stage of `version` are one trace."""
    assert not (root / "metrics" / "driver.json").exists()
    lines = [
        json.loads(line)
        for file in (root / "logs").glob("worker-*.err")
        for line in file.read_text().splitlines()
        if line.startswith('{"time"')
    ]
    assert {line["stream"] for line in lines} == {stream}
    indexed = [line for line in lines if "shard" in line and line["role"] == "driver"]
    assert len({line["shard"] for line in indexed}) == shards
    assert any(line.get("stage") == version for line in lines)

    spans = [
        json.loads(line) for file in (root / "traces").iterdir() for line in file.read_text().splitlines()
    ]
    of_stage = {s["name"] for s in spans if s["context"]["trace_id"] == f"{trace_id(version):#034x}"}
    assert of_stage == {"stage", "stage.open", "stage.steps", "stage.finish", "stage.commit"}
    assert sum(s["name"] == "shard.index" for s in spans) == shards
    assert (root / "profiles" / f"{version}.txt").stat().st_size > 0
    assert json.loads((root / "profiles" / f"{version}.trace.json").read_text())["traceEvents"]
