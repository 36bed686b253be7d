"""`config --check`: every lack of this machine is found before a start, and nothing is left behind by looking."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from stream_odml.cli import preflight
from stream_odml.cli.main import app
from stream_odml.cli.preflight import examine
from stream_odml.config.stream import parse_config
from stream_odml.pipeline.later_stages import LaterRules
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store
from tests.ingest.followed import send
from tests.ingest.kafka_broker import mock_broker

Usage = namedtuple("Usage", "total used free")
PORTS = {"service": {"port": 0}, "metrics": {"port": 0}}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(preflight, "available_bytes", lambda: 32 << 30)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)


def levels(**sections: Any) -> tuple[dict[str, str], str]:
    found = list(examine(parse_config({**PORTS, **sections})))
    return {one.check: one.state for one in found if one.state != "ok"}, "\n".join(
        one.detail for one in found
    )


def test_where_all_is_well_nothing_is_made(tmp_path: Path) -> None:
    lacks, said = levels()
    assert lacks == {}
    assert "conv4 builds" in said
    assert "stream-root is made at the first start" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "path", [".", "..", "../..", "gallery", "push", "ledger/x", "versions", "../stream-root/logs"]
)
def test_an_inbox_lies_apart_from_what_is_the_streams_own(tmp_path: Path, path: str) -> None:
    lacks, said = levels(source={"path": path})
    assert lacks == {"source": "failure"}
    assert f"source.path {path!r} is " in said
    assert "name a place of its own" in said
    for good in ("inbox", "inbox/new", "shots", "../photos", str(tmp_path / "elsewhere")):
        assert levels(source={"path": good})[0] == {}, good
    far = parse_config({**PORTS, "root": "s3://bucket/stream", "source": {"path": str(tmp_path.parent)}})
    assert inbox_path(far) == str(tmp_path.parent), (
        "around the working folder, and no root of an object store"
    )


@pytest.mark.parametrize(
    ("sections", "what", "words"),
    [
        ({"model": {"backbone": "mobilenetv2", "weights": "none.safetensors"}}, "model", "none.safetensors"),
        ({"model": {"backbone": "resnet"}}, "model", "expected conv4, mobilenetv2"),
        ({"model": {"backbone": "transformers:./nowhere"}}, "model", "expected the name of a vision model"),
        ({"learning": {"classes_per_batch": 15}}, "training", "make it a multiple"),
        ({"cluster": {"workers": 16}}, "CPUs", "Lower `cluster.workers`"),
        ({"cluster": {"gpus_per_worker": 99}}, "GPUs", "198 GPU at the same time"),
        ({"service": {"port": 0, "token_file": "secret"}}, "tokens", "create it with one line"),
        ({"source": {"kind": "no_such_module:make"}}, "source", "must be importable"),
        ({"root": "file/below"}, "stream root", "file is a file"),
    ],
)
def test_every_lack_is_named_with_its_remedy(sections: dict[str, Any], what: str, words: str) -> None:
    Path("file").write_text("")
    lacks, said = levels(**sections)
    assert lacks.get(what) == "failure"
    assert words in said


@pytest.mark.parametrize(
    ("learning", "held_out", "words"),
    [
        ("auto", 0.0, "learnt in the first task and is never moved: `learning.trunk: auto`"),
        ("auto", 0.05, "moved once a tenth of the known classes are new to it"),
        ("distilled", 0.0, "moved by later tasks"),
        ("frozen", 0.05, "learnt in the first task and is never moved"),
    ],
)
def test_it_says_whether_the_trunk_will_ever_move(learning: str, held_out: float, words: str) -> None:
    config = {"learning": {"trunk": learning}, "evaluation": {"held_out": held_out}}
    assert words in levels(**config)[1]
    assert LaterRules.of(parse_config(config)).may_move == ("moved by" in words or "moved once" in words)


def test_a_topic_is_looked_at_and_nothing_of_it_is_copied(tmp_path: Path) -> None:
    with mock_broker() as broker:
        broker[1].list_topics("photos", timeout=60)  # makes it
        send(broker, "photos", range(40))
        Store.create(str(tmp_path / "root"), 8, None)
        before = sorted(path for path in tmp_path.rglob("*") if path.is_file())
        source = {"kind": "kafka", "path": "photos", "kafka": {"servers": broker[0]}}
        lacks, said = levels(root=str(tmp_path / "root"), source=source)
    assert lacks == {}
    assert "kafka answers: topic photos has 4 partitions with 40 messages" in said
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == before
    assert not (tmp_path / "root" / "spool").exists()


def test_a_broker_that_is_away_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "ANSWER_S", 1.0)
    lacks, _ = levels(source={"kind": "kafka", "path": "photos", "kafka": {"servers": "127.0.0.1:9"}})
    assert lacks == {"source": "failure"}


def test_a_port_in_use_is_a_problem_and_not_taken() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        lacks, said = levels(metrics={"port": port})
        assert lacks == {"ports": "failure"}
        assert "`metrics.port` to another port" in said
    assert levels(metrics={"port": port})[0] == {}


def test_little_memory_is_a_doubt_and_no_disk_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "available_bytes", lambda: 1 << 30)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(1, 1, 1 << 20))
    lacks, said = levels()
    assert lacks == {"memory": "warning", "disk": "failure"}
    assert "lower cluster.workers" in said


def test_a_store_that_does_not_answer_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "ANSWER_S", 0.1)
    monkeypatch.setattr("stream_odml.store.store.Store.open", lambda *a, **k: time.sleep(5))
    lacks, said = levels(root="s3://bucket/root")
    assert lacks["stream root"] == "failure"
    assert "check address, credentials and network" in said


def test_the_command_ends_with_1_where_something_is_missing() -> None:
    Path("good.yaml").write_text("service: {port: 0}\nmetrics: {port: 0}\n")
    Path("bad.yaml").write_text("service: {port: 0}\nmetrics: {port: 0}\nmodel: {backbone: resnet}\n")
    invoke = CliRunner().invoke
    good, bad = (invoke(app, ["config", "--check", name]) for name in ("good.yaml", "bad.yaml"))
    assert (good.exit_code, bad.exit_code) == (0, 1)
    assert "cannot be run here yet: model" in bad.output
    assert '"failure"' in invoke(app, ["config", "--check", "bad.yaml", "--json"]).output
