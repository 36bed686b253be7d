"""Logs, traces and profiles: what a person or a collector finds after a stream has run."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import generate_latest

from stream_odml.config.stream import parse_config
from stream_odml.observe import tracing
from stream_odml.observe.logs import about, set_up_logs
from stream_odml.observe.observing import TERMINAL, observe
from stream_odml.observe.profiling import WARM_UP, profiled
from stream_odml.observe.tracing import set_up_traces, span, trace_id
from stream_odml.pipeline.metrics import DriverMetrics
from stream_odml.service.metrics import ServiceMetrics
from tests.faults.harness import StreamProcess, land_shards, open_store, small_config


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers = handlers
    root.setLevel(level)
    set_up_traces("", "", "off", Path())


def test_a_line_of_json_names_stream_stage_and_shard(capfd: pytest.CaptureFixture[str]) -> None:
    set_up_logs("flowers", "driver", "json", "info")
    log = logging.getLogger("stream_odml.test")
    with about(stage="v0001-aa"), about(shard="s-1"):
        log.info("indexed %d\nrows", 3)
    log.debug("below the level")
    try:
        raise ValueError("no disk")
    except ValueError:
        log.exception("cannot commit")
    first, second = map(json.loads, capfd.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {
        "level": "info", "logger": "stream_odml.test", "message": "indexed 3\nrows", "stream": "flowers",
        "role": "driver", "stage": "v0001-aa", "shard": "s-1",
    }  # fmt: skip
    assert "shard" not in second
    assert "ValueError: no disk" in second["error"]


def test_spans_of_one_shard_share_a_trace_across_processes(tmp_path: Path) -> None:
    for role in ("indexer-0", "driver"):  # as two processes would: nothing passes between them
        set_up_traces("flowers", role, "file", tmp_path)
        with span("outer", "shard-7", rows=3), span("inner", "shard-7"):
            pass
    spans = [json.loads(line) for file in tmp_path.glob("*.jsonl") for line in file.read_text().splitlines()]
    assert len(spans) == 4
    assert {s["context"]["trace_id"] for s in spans} == {f"{trace_id('shard-7'):#034x}"}
    by_name = {(s["resource"]["attributes"]["role"], s["name"]): s for s in spans}
    outer, inner = by_name["driver", "outer"], by_name["driver", "inner"]
    assert inner["parent_id"] == outer["context"]["span_id"]
    assert outer["attributes"] == {"rows": 3, "of": "shard-7"}


def test_traces_are_off_by_default(tmp_path: Path) -> None:
    set_up_traces("flowers", "driver", parse_config({}).observe.traces, tmp_path)
    with span("anything", "shard-7"):
        pass
    assert tracing._tracer is None
    assert list(tmp_path.iterdir()) == []


def test_otlp_without_its_package_says_what_to_install(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="pip install opentelemetry-exporter-otlp"):
        set_up_traces("flowers", "driver", "otlp", tmp_path)


def test_a_profile_is_a_chrome_trace_and_a_table() -> None:
    written: dict[str, bytes] = {}
    weights = torch.randn(64, 64)
    with profiled(2, written.__setitem__, "v0001-aa") as stepped:
        for step in range(WARM_UP + 4):
            assert (weights @ weights).sum().isfinite()
            stepped()
            assert bool(written) == (step >= WARM_UP + 1)
    trace = json.loads(written["profiles/v0001-aa.trace.json"])
    assert sum(event.get("name") == "aten::mm" for event in trace["traceEvents"]) == 2
    assert b"aten::mm" in written["profiles/v0001-aa.txt"]


def test_the_profile_of_a_stage_that_is_shorter_is_written_at_its_end() -> None:
    written: dict[str, bytes] = {}
    with profiled(1000, written.__setitem__, "v0001-aa") as stepped:
        for _ in range(WARM_UP + 2):
            torch.randn(8, 8).sum()
            stepped()
        assert not written
    assert b"aten::sum" in written["profiles/v0001-aa.txt"]


def test_every_counter_is_there_at_zero() -> None:
    driver = generate_latest(DriverMetrics().registry).decode()
    for line in (
        'stream_odml_shards_total{state="indexed"} 0.0',
        'stream_odml_images_total{outcome="quarantined"} 0.0',
        'stream_odml_quarantined_rows_total{reason="not_an_image"} 0.0',
        'stream_odml_commit_seconds_count{commit="stage"} 0.0',
    ):
        assert line in driver
    replica = generate_latest(ServiceMetrics().registry).decode()
    assert 'stream_odml_queries_total{kind="vector",outcome="server_error"} 0.0' in replica


@pytest.mark.slow
@pytest.mark.ray
def test_a_stream_leaves_logs_traces_and_a_profile(tmp_path: Path) -> None:
    """One stage by the command line: each kind of process has logged, and the stage's spans are one trace."""
    root = tmp_path / "root"
    observe = {"log_format": "json", "traces": "file", "profile_steps": 4}
    land_shards(root, 3)
    with StreamProcess(small_config(root, observe=observe)) as stream:
        stream.until(lambda: (root / "metrics" / "driver.json").exists())
        assert stream.wait() == 0, stream.tail()
    assert not (root / "metrics" / "driver.json").exists()
    head = open_store(root).tree.head

    lines = [
        json.loads(line)
        for file in (root / "logs").glob("worker-*.err")
        for line in file.read_text().splitlines()
        if line.startswith('{"time"')
    ]
    assert {line["stream"] for line in lines} == {"faults"}
    indexed = [line for line in lines if "shard" in line and line["role"] == "driver"]
    assert len({line["shard"] for line in indexed}) == 3
    assert any(line.get("stage") == head for line in lines)

    spans = [
        json.loads(line) for file in (root / "traces").iterdir() for line in file.read_text().splitlines()
    ]
    of_stage = {s["name"] for s in spans if s["context"]["trace_id"] == f"{trace_id(head):#034x}"}
    assert of_stage == {"stage", "stage.open", "stage.steps", "stage.finish", "stage.commit"}
    assert sum(s["name"] == "shard.index" for s in spans) == 3
    assert (root / "profiles" / f"{head}.txt").stat().st_size > 0
    assert json.loads((root / "profiles" / f"{head}.trace.json").read_text())["traceEvents"]


def test_a_terminal_is_not_filled_with_the_log(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Driver and workers log what happens; whoever typed the command sees the panel, and errors."""
    logging.getLogger().handlers = []
    plain = parse_config({"root": str(tmp_path)})
    observe(plain, TERMINAL)
    logging.getLogger("stream_odml").info("of no interest")
    assert capfd.readouterr().err == ""
    observe(plain, "driver")
    logging.getLogger("stream_odml").info("indexed")
    assert "indexed" in capfd.readouterr().err
