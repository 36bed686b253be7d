"""Every example runs as it stands; the small runs here show that it does what it says."""

from __future__ import annotations

import re
import runpy
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from stream_odml.cli.preflight import examine
from stream_odml.config.stream import parse_config
from stream_odml.ingest.reading import read_shard
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.pipeline.sources import open_sources
from tests.docs.pages import REPOSITORY
from tests.service.tiny_stream import picture

EXAMPLES = REPOSITORY / "examples"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))


def run(name: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / name))


def test_every_example_is_listed() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| \[(\w+\.py)\]", page, re.MULTILINE)) == {
        p.name for p in EXAMPLES.glob("*.py")
    }


def test_plain_torch_learns_tasks_whose_old_images_are_still_found(
    capsys: pytest.CaptureFixture[str],
) -> None:
    run("plain_torch.py")["main"](classes=12, base_steps=20, stage_steps=6, side=16)
    lines = capsys.readouterr().out.splitlines()
    assert [re.sub(r"[01]\.\d+", "…", line) for line in lines] == [
        f"task {n}: {4 * n} classes, Recall@1 …" for n in (1, 2, 3)
    ]
    assert float(lines[-1].split()[-1]) > 0.5  # of twelve classes: chance is 0.08


def test_plain_torch_takes_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number, name in enumerate(["ash", "elm", "fir", "oak", "sloe", "yew"]):
        (tmp_path / name).mkdir()
        for image in range(3):
            (tmp_path / name / f"{image}.png").write_bytes(picture(number))
    run("plain_torch.py")["main"](str(tmp_path), base_steps=2, stage_steps=2, side=16)
    assert capsys.readouterr().out.count("classes, Recall@1") == 3


def test_plain_torch_leaves_no_class_alone_and_passes_over_what_is_no_image_of_a_class(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main = run("plain_torch.py")["main"]
    for number, name in enumerate(["ash", "elm", "fir", "oak", "yew"]):
        (tmp_path / name / "more").mkdir(parents=True)
        (tmp_path / name / ".hidden").write_bytes(b"no image")
        for image in range(3):
            (tmp_path / name / f"{image}.png").write_bytes(picture(number))
    (tmp_path / "zelkova").mkdir()
    main(str(tmp_path), base_steps=2, stage_steps=2, side=16)
    found = re.findall(r"(\d+) classes", capsys.readouterr().out)
    assert found == ["2", "5"]
    for name in ("elm", "fir", "oak", "yew"):
        shutil.rmtree(tmp_path / name)
    with pytest.raises(ValueError, match="1 classes; each needs two"):
        main(str(tmp_path), base_steps=2, stage_steps=2, side=16)


def test_a_loss_of_ones_own_falls_and_a_stream_takes_it() -> None:
    early, late = run("own_loss.py")["main"](steps=20)
    assert late < early


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, 0, 0, 0]])
def test_it_is_0_where_there_is_nothing_to_compare(labels: list[int]) -> None:
    loss = run("own_loss.py")["LiftedLoss"]()
    assert float(loss(torch.eye(4), torch.tensor(labels))) == 0.0


@pytest.mark.parametrize(
    ("loss", "args", "state"),
    [
        ("own_loss:LiftedLoss", {"margin": 0.5}, "ok"),
        ("own_loss:LiftedLoss", {"mragin": 0.5}, "failure"),
        ("own_loss:Missing", {}, "failure"),
        ("own_loss:main", {}, "failure"),
        ("lifted", {}, "failure"),
    ],
)
def test_a_configuration_with_such_a_loss_is_checked_before_a_start(
    tmp_path: Path, loss: str, args: dict[str, float], state: str
) -> None:
    learning = {"metric_loss": loss, "metric_loss_args": args}
    config = parse_config({"root": str(tmp_path / "root"), "learning": learning})
    (found,) = [one for one in examine(config) if one.check == "training"]
    assert found.state == state, found.detail


def test_a_source_of_ones_own_finds_whole_folders_once(tmp_path: Path) -> None:
    def write(day: str, part: int, seed: int) -> None:
        (tmp_path / day).mkdir(exist_ok=True)
        rows = {"image": [picture(seed), picture(seed + 1)], "class_name": ["oak", "elm"]}
        pq.write_table(pa.table(rows), tmp_path / day / f"part-{part:04}.parquet")

    write("day=2026-11-25", 0, 0)
    write("day=2026-11-25", 1, 2)
    write("day=2026-11-26", 0, 4)
    (tmp_path / "day=2026-11-25" / "_SUCCESS").touch()
    config = {
        "root": str(tmp_path / "root"),
        "source": {"kind": "own_source:completed_folders", "path": str(tmp_path)},
    }
    source = open_sources(parse_config(config))[0]
    found = source.poll(set())
    assert [Path(ref.uri).name for ref in found] == ["part-0000.parquet", "part-0001.parquet"]
    assert source.poll({ref.stamp for ref in found}) == []
    assert [getattr(row, "class_name", row) for row in read_shard(found[0])] == ["oak", "elm"]
    (tmp_path / "day=2026-11-26" / "_SUCCESS").touch()
    assert len(source.poll({ref.stamp for ref in found})) == 1
    shutil.rmtree(tmp_path / "day=2026-11-26")
    (tmp_path / "day=2026-11-26").mkdir()
    (tmp_path / "day=2026-11-26" / "_SUCCESS").touch()
    (tmp_path / "day=2026-11-26" / "part-0000.parquet").symlink_to("nowhere")
    with pytest.raises(TransientReadError):
        source.poll({ref.stamp for ref in found})
    assert len({ref.shard_id for ref in found}) == 2
    assert np.unique([ref.stamp for ref in found]).size == 2
