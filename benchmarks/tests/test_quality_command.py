"""The study as a command: runs that go on where they were killed, twins that share a student, rows that are refused."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.quality.arguments import parser, plan
from benchmarks.quality.data import load_images
from benchmarks.quality.methods import NEEDS_WEIGHTS, all_names
from benchmarks.quality.study import Run
from benchmarks.quality.whole import study_parser
from benchmarks.tests.squares import arguments, run, squares, without_seconds


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("data"))


def draw_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the report without plots, which take longer than all that is learnt here."""
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])


def test_the_command_measures_resumes_and_reports(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(monkeypatch, arguments(parquet, whole, "--commit", "c0ffee"))
    figures = json.loads((whole / "quality-squares.json").read_text())["figures"]
    assert figures["distilled/steps"] == figures["joint/steps"] == 4
    assert figures["frozen_f0/steps"] == 0
    assert figures["frozen_f0/last_r1_mapped"] == figures["frozen_f0/last_r1_reextracted"]
    assert "frozen_pretrained/steps" not in figures
    assert "data:image/png" in (whole / "quality-squares.html").read_text()
    assert "| sdc_l2 | 1 |" in (whole / "quality-squares.md").read_text()
    draw_nothing(monkeypatch)

    learn, budget = Run._learn, iter(range(3))

    def learn_until_killed(self: Run, *args: object) -> None:
        if next(budget, None) is None:
            raise KeyboardInterrupt
        learn(self, *args)  # type: ignore[arg-type]

    with monkeypatch.context() as kill:
        kill.setattr(Run, "_learn", learn_until_killed)
        with pytest.raises(KeyboardInterrupt):
            run(kill, arguments(parquet, killed, "--commit", "c0ffee"))
    run(monkeypatch, arguments(parquet, killed, "--commit", "c0ffee"))
    assert without_seconds(killed) == without_seconds(whole)

    lines = (killed / ".quality/rows.jsonl").read_text().splitlines(keepends=True)
    (killed / ".quality/rows.jsonl").write_text("".join(lines[: len(lines) // 2]))
    # What is left of a run is not taken for it.
    run(monkeypatch, arguments(parquet, killed, "--commit", "c0ffee"))
    assert without_seconds(killed) == without_seconds(whole)

    monkeypatch.setattr(Run, "go", lambda self: pytest.fail("measured again what had been measured"))
    run(monkeypatch, arguments(parquet, killed, "--commit", "c0ffee"))
    run(
        monkeypatch,
        arguments(parquet, killed, "--commit", "c0ffee", "--methods", "mine=distilled", "--report-only"),
    )
    assert "mine/last_r1_mapped" in json.loads((killed / "quality-squares.json").read_text())["figures"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--report-only", "--commit", "other"], "has nothing of these methods"),
        (["--methods", "frozen_pretrained,exact_pretrained"], "need pretrained weights"),
        (["--methods", "ours,frozen_pretrained"], "frozen_pretrained need pretrained weights"),
        (["--beside", "l2"], "expected FILE:NAME"),
        (["--beside", "nowhere.parquet:l2"], "cannot be read as Parquet"),
        (["--protocol", "6+9*3"], "needs 33 classes, there are 12"),
        (["--protocol", "6+2*1"], "tasks of 6 and of 1 classes; each needs 2 or more"),
        (["--methods", "nonsense"], "exact_frozen"),
        (["--methods", "a=ranpac:width=0"], "quality: width: 0, expected"),
        (["--device", "nowhere"], "--device nowhere"),
        (["--name", "a/b"], "expected a file name"),
        (["--out", "/proc/nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_done_is_refused_in_one_line_before_anything_is_learnt(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    monkeypatch.setattr(Run, "go", lambda self: pytest.fail("learnt"))
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, arguments(parquet, tmp_path, "--work", str(tmp_path / "work"), *words))
    assert said in str(ended.value)
    assert "\n" not in str(ended.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--seeds", "a"], "expected whole numbers from 0 to"),
        (["--seeds", "0,"], "expected whole numbers from 0 to"),
        (["--seed", str(2**63)], "expected whole numbers from 0 to"),
        (["--threads", "x"], "expected a whole number of 0 or more"),
    ],
)
def test_a_word_that_is_no_number_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    for reader, needed in ((parser(), ["--data", "x.parquet"]), (study_parser(), ["--data", "."])):
        if words[0] in reader.format_help():
            with pytest.raises(SystemExit):
                reader.parse_args([*needed, *words])
            assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_help_keeps_its_commands_on_lines_of_their_own() -> None:
    assert "--seeds 0,1,2\npython -m benchmarks.quality study" in parser().format_help()


def test_all_methods_are_those_that_the_weights_allow(parquet: Path, tmp_path: Path) -> None:
    words = ["--data", str(parquet), "--protocol", "6+2*3", "--image-size", "16", "--work", str(tmp_path)]
    _, methods, _ = plan(parser().parse_args(words))
    names = [method.name for method in methods]
    assert names == [name for name in all_names() if name not in NEEDS_WEIGHTS]


@pytest.mark.parametrize("kept", ["pixels-*.npy", "base-*", "twin-*", "features-*.npz"])
def test_a_cache_that_is_damaged_is_named_with_what_to_delete(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    draw_nothing(monkeypatch)
    words = arguments(parquet, tmp_path, "--commit", "c0ffee", "--methods", "l2,exact_frozen")
    run(monkeypatch, words)
    work = tmp_path / ".quality"
    with (work / "rows.jsonl").open("a") as rows:
        rows.write('{"run": "of another program"}\n')
    run(monkeypatch, words)  # a foreign line is passed over
    (work / "rows.jsonl").unlink()
    for left in [*work.glob("run-*"), *(work.glob("twin-*") if kept == "base-*" else ())]:
        shutil.rmtree(left)
    at = min(work.glob(kept))
    for file in [at] if at.is_file() else [file for file in at.rglob("*") if file.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(SystemExit, match=f"is damaged .*; delete {re.escape(str(at))}, and it is made again"):
        run(monkeypatch, words)


def test_a_task_of_one_class_is_refused_at_first_by_methods_that_train_on_it_alone(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = pq.read_table(parquet)
    names = [name.removeprefix("class/") + "/only" for name in table["class_name"].to_pylist()]
    alone = tmp_path / "squares.parquet"
    pq.write_table(table.set_column(1, "class_name", pa.array(names)), alone)
    draw_nothing(monkeypatch)
    monkeypatch.setattr("benchmarks.quality.moving.FEW_IMAGES", 4)
    words = ("--protocol", "alphabets:6*2", "--commit", "c0ffee", "--methods")
    with monkeypatch.context() as refused:
        refused.setattr(Run, "go", lambda self: pytest.fail("learnt"))
        for trained in ("distilled", "sdc_l2", "exact_always", "ldc_l2"):
            with pytest.raises(SystemExit, match="all images of task 1 are of one class"):
                run(refused, arguments(alone, tmp_path, *words, f"frozen_f0,joint,{trained}"))
    # A trunk waits until two such tasks are there.
    run(monkeypatch, arguments(alone, tmp_path, *words, "always=ours:trunk=distilled,frozen_f0"))
    rows = without_seconds(tmp_path)
    assert [row["value"] for row in rows if row["metric"] == "trunk_tasks"] == [2]


def test_rows_that_cannot_be_used_are_named(parquet: Path, tmp_path: Path) -> None:
    good = pq.read_table(parquet)
    images = good["image"].to_pylist()

    def refused(said: str, **columns: Any) -> None:
        pq.write_table(pa.table(columns), tmp_path / "bad.parquet")
        with pytest.raises(ValueError, match=said):
            load_images(tmp_path / "bad.parquet", 16, tmp_path)

    names = good["class_name"].to_pylist()
    refused("row 3: ", image=[*images[:3], b"no image", *images[4:]], class_name=names)
    refused("row 5: ", image=[*images[:5], None, *images[6:]], class_name=names)
    refused("1 of 120 rows have no class_name", image=images, class_name=[None, *names[1:]])
    refused("no column class_name; it has image, label", image=images, label=names)
    for column in ([data.hex() for data in images], [list(data) for data in images], [{"path": ""}] * 120):
        refused("expected the bytes of image files", image=column, class_name=names)
    refused("row 0: ", image=pa.nulls(120), class_name=names)
    refused("has no rows", image=pa.array([], pa.binary()), class_name=pa.array([], pa.string()))
    assert not list(tmp_path.glob("*.part"))
    for content in (b"", b"no Parquet"):
        (tmp_path / "other.parquet").write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.parquet cannot be read as Parquet"):
            load_images(tmp_path / "other.parquet", 16, tmp_path)
    nested = pa.table({"image": [{"bytes": data, "path": None} for data in images], "class_name": names})
    pq.write_table(nested, tmp_path / "hub.parquet")
    assert np.array_equal(
        load_images(tmp_path / "hub.parquet", 16, tmp_path).pixels, load_images(parquet, 16, tmp_path).pixels
    )


def test_a_method_that_only_maps_otherwise_takes_the_student_of_its_twin(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    beside, alone = tmp_path / "beside", tmp_path / "alone"
    run(monkeypatch, arguments(parquet, beside, "--commit", "c0ffee", "--methods", "l2,sdc_l2"))
    run(monkeypatch, arguments(parquet, alone, "--commit", "c0ffee", "--methods", "sdc_l2"))
    of_twin = [row for row in without_seconds(beside) if row["method"] == "sdc_l2"]
    assert of_twin == without_seconds(alone)
    last = json.loads((beside / "quality-squares.json").read_text())["figures"]
    assert last["l2/last_r1_reextracted"] == last["sdc_l2/last_r1_reextracted"]
    assert last["l2/avg_inc_r1_mapped"] != last["sdc_l2/avg_inc_r1_mapped"]


def test_a_method_whose_parent_was_whitened_by_another_map_learns_its_own_student(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    beside, alone = tmp_path / "beside", tmp_path / "alone"
    other = "other=lean:gallery_map=identity"
    run(monkeypatch, arguments(parquet, beside, "--commit", "c0ffee", "--methods", f"lean,{other}"))
    run(monkeypatch, arguments(parquet, alone, "--commit", "c0ffee", "--methods", other))
    assert [row for row in without_seconds(beside) if row["method"] == "other"] == without_seconds(alone)


def test_an_oracle_is_measured_beside_and_changes_nothing_else(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    plain, more = tmp_path / "plain", tmp_path / "more"
    for out, words in ((plain, []), (more, ["--oracle"])):
        run(monkeypatch, arguments(parquet, out, "--commit", "c0ffee", "--methods", "l2,frozen_f0", *words))
    rows = [{**row, "run": ""} for row in without_seconds(more)]
    assert [row for row in rows if row["gallery"] != "oracle"] == [
        {**row, "run": ""} for row in without_seconds(plain)
    ]
    figures = json.loads((more / "quality-squares.json").read_text())["figures"]
    assert {"l2/last_r1_oracle", "frozen_f0/last_r1_oracle"} <= set(figures)
    assert figures["frozen_f0/last_r1_oracle"] == figures["frozen_f0/last_r1_reextracted"]
    assert "| last, oracle map |" in (more / "quality-squares.md").read_text()


def test_methods_of_an_earlier_result_stand_beside_under_another_name(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_nothing(monkeypatch)
    before, now = tmp_path / "before", tmp_path / "now"
    run(monkeypatch, arguments(parquet, before, "--commit", "c0ffee", "--methods", "frozen_f0,finetune"))
    file = before / "quality-squares.parquet"
    words = ("--commit", "beef", "--methods", "frozen_f0", "--beside", f"{file}:tuned=finetune")
    run(monkeypatch, arguments(parquet, now, *words))
    was, found = (json.loads((at / "quality-squares.json").read_text())["figures"] for at in (before, now))
    assert found["tuned/last_r1_mapped"] == was["finetune/last_r1_mapped"]
    assert "finetune/last_r1_mapped" not in found
    assert "commits beef, c0ffee" in (now / "quality-squares.md").read_text()
    monkeypatch.setattr(Run, "go", lambda self: pytest.fail("learnt before the words were looked at"))
    for wrong, said in (
        (f"{parquet}:l2", "no column data and no column"),
        (f"{file}:l2", "nothing of l2"),
        (f"{file}:frozen_f0", "frozen_f0 would be there twice"),
    ):
        with pytest.raises(SystemExit, match=said):
            run(monkeypatch, arguments(parquet, now, *words[:-1], wrong))
    with pytest.raises(SystemExit, match="nothing of finetune"):
        run(
            monkeypatch,
            arguments(parquet, tmp_path / "other", *words[:-1], f"{file}:finetune", "--select", "validation"),
        )
