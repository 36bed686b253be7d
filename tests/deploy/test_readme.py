"""The operator's handbook: its commands are run or parsed as written, its figures are those that were measured."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import typer.main

from stream_odml.cli.main import app
from stream_odml.config.stream import StreamConfig
from stream_odml.observe.targets import targets_folder
from stream_odml.store.store import Store
from tests.cluster.small_root import claim, index, shard
from tests.deploy.paths import DEPLOY, REPOSITORY, load_rules

README = (DEPLOY / "README.md").read_text(encoding="utf-8")
RESULTS = REPOSITORY / "benchmarks" / "results"
BLOCKS = [line.strip() for line in README.replace("\\\n", " ").splitlines() if line.startswith("    ")]
OURS = [line.split("#")[0] for line in BLOCKS if line.startswith("stream-odml ")]
OURS += re.findall(r"`(stream-odml [a-z][^`]*)`", README)
FIGURES = re.findall(r"^\| ([^|]+) \| ([\d.]+) \| `benchmarks\.(\w+)`: (\w+) \|$", README, re.MULTILINE)


@pytest.mark.parametrize("line", OURS)
def test_every_command_is_one_that_we_have(line: str) -> None:
    """Parsed by the command line itself: an option that is gone, or an argument too few, fails here."""
    group = typer.main.get_command(app)
    _, name, *arguments = shlex.split(line)
    assert isinstance(group, typer.core.TyperGroup)
    command = group.commands[name]
    mentions_only = not arguments
    if not mentions_only:
        command.make_context(name, arguments)


def test_there_are_commands_to_test() -> None:
    assert {shlex.split(line)[1] for line in OURS} >= {"demo", "submit", "stop", "backup", "status", "run"}


def test_backup_and_restore_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "data" / "stream"
    writer = claim(root)
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 3})
    lines = [line for line in OURS if line.startswith(("stream-odml backup", "stream-odml status /"))]
    assert len(lines) == 3
    for line in lines:  # while its writer lives
        arguments = re.sub(r" /(?=\w)", f" {tmp_path}/", line)
        app(shlex.split(arguments)[1:], standalone_mode=False)
    writer.release()
    restored = Store.open(str(tmp_path / "data" / "stream-restored"))
    assert restored.gallery_rows()["class_name"].to_pylist() == ["oak"] * 3


@pytest.mark.parametrize("line", [line for line in BLOCKS if line.startswith("python ")])
def test_every_script_is_there(line: str) -> None:
    _, script, *_ = shlex.split(line)
    assert (REPOSITORY / script).exists()


def test_every_benchmark_and_test_named_is_there() -> None:
    for name in set(re.findall(r"`(?:python -m )?benchmarks\.(\w+)`", README)):
        assert any((REPOSITORY / "benchmarks").glob(f"{name}*")), name
    for path in re.findall(r"pytest -m slow (\S+\.py)", README):
        assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize(("what", "said", "benchmark", "figure"), FIGURES)
def test_every_size_is_the_measured_one(what: str, said: str, benchmark: str, figure: str) -> None:
    figures = json.loads((RESULTS / f"{benchmark}.json").read_text())["figures"]
    # A factor of two: the machine is shared, and a file may have been measured anew since.
    assert 0.5 <= float(said) / figures[figure] <= 2, what


def test_there_are_sizes_to_test() -> None:
    assert len(FIGURES) >= 8


def test_every_alert_has_its_section_and_every_section_its_alert() -> None:
    alerts = {rule["alert"] for rule in load_rules() if "alert" in rule}
    assert set(re.findall(r"^### (Stream\w+)$", README, re.MULTILINE)) == alerts


def test_settings_that_are_named_exist() -> None:
    for section, name in re.findall(
        r"`(cluster|service|metrics|observe|store|ingest|source)\.(\w+)`", README
    ):
        kind = StreamConfig.model_fields[section].annotation
        assert name in getattr(kind, "model_fields", {}), f"{section}.{name}"


def test_the_scraped_folder_is_where_exporters_announce_themselves() -> None:
    assert targets_folder("/data/stream", None) == Path("/data/stream/metrics")
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    assert "/data/stream/metrics/driver.json" in config
