"""The whole study as one command: it lists what is left, runs that alone, and keeps the sealed stream for the end."""

from __future__ import annotations

import multiprocessing
import os
import re
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from benchmarks.common import read_rows
from benchmarks.quality import __main__ as command
from benchmarks.quality import whole
from benchmarks.quality.arguments import parser, plan
from benchmarks.quality.jobs import jobs_of
from benchmarks.quality.left import guess, shared_student, speed_of
from benchmarks.quality.methods import parse_methods
from benchmarks.quality.parts import PARTS as REAL
from benchmarks.quality.parts import Part
from benchmarks.quality.protocols import build_stream
from benchmarks.quality.study import Run
from benchmarks.tests.squares import squares
from stream_odml.learn.settings import StageSettings

WORDS = (
    "--image-size", "16", "--dim", "8", "--base-steps", "3", "--steps", "2", "--set", "classes_per_batch=3",
    "--set", "images_per_class=2",
)  # fmt: skip
PARTS = (
    Part("hidden", "squares", "6+3*2", "frozen_f0", WORDS, "0", sealed=True),
    Part("first", "squares", "6+2*3", "finetune,frozen_f0", WORDS, "0,1"),
    Part("second", "squares", "repeat:6+2*3", "frozen_f0", WORDS, "0"),
)


@pytest.fixture(autouse=True)
def parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole, "PARTS", PARTS)
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])


def study(monkeypatch: pytest.MonkeyPatch, folder: Path, *more: str) -> None:
    words = ["study", "--data", str(folder), "--out", str(folder / "out"), "--commit", "c0ffee", *more]
    monkeypatch.setattr("sys.argv", ["quality", *words])
    command.main()


def test_the_study_lists_what_is_left_and_runs_it_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squares(tmp_path)
    ran: list[tuple[str, str, int]] = []
    go = Run.go

    def watched(self: Run) -> None:
        ran.append((self.study.protocol, self.method.name, self.seed))
        if len(ran) == 3:
            raise KeyboardInterrupt
        go(self)

    monkeypatch.setattr(Run, "go", watched)
    study(monkeypatch, tmp_path, "--dry-run")
    listed = capsys.readouterr().out
    assert ran == []
    assert "hidden" not in listed
    rows = [line.split("│")[1:4] for line in listed.splitlines() if line.count("│") > 3]
    named = [[cell.strip() for cell in row] for row in rows]
    assert named == [
        ["first", "finetune", "0,1"], ["first", "frozen_f0", "0,1"], ["first", "(base stage)", "0,1"],
        ["second", "frozen_f0", "0"], ["second", "(base stage)", "0"],
    ]  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        study(monkeypatch, tmp_path)
    capsys.readouterr()
    study(monkeypatch, tmp_path, "--dry-run")
    named = [line.split("│")[2:4] for line in capsys.readouterr().out.splitlines() if line.count("│") > 3]
    assert [[cell.strip() for cell in row] for row in named][:3] == [
        ["finetune", "1"], ["frozen_f0", "1"], ["(base stage)", "1"]
    ]  # fmt: skip
    study(monkeypatch, tmp_path)
    assert sorted(ran[3:]) == sorted(
        [("6+2*3", "finetune", 1), ("6+2*3", "frozen_f0", 1), ("repeat:6+2*3", "frozen_f0", 0)]
    ), "what had been measured is not measured again"
    assert (tmp_path / "out/first.md").exists()
    assert (tmp_path / "out/second.parquet").exists()
    assert not (tmp_path / "out/hidden.md").exists()
    capsys.readouterr()
    study(monkeypatch, tmp_path, "--dry-run")
    assert "Everything is measured." in capsys.readouterr().out
    study(monkeypatch, tmp_path, "--sealed", "--dry-run")
    assert "hidden" in capsys.readouterr().out


def test_what_another_part_measures_is_counted_with_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    squares(tmp_path)
    monkeypatch.setattr(
        whole, "PARTS", (*PARTS[1:], Part("third", "squares", "6+2*3", "finetune,l2", WORDS, "1,2"))
    )
    study(monkeypatch, tmp_path, "--dry-run")
    rows = [line.split("│")[1:4] for line in capsys.readouterr().out.splitlines() if "third" in line]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["third", "finetune", "2"], ["third", "l2", "1,2"], ["third", "(base stage)", "2"]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--only", "hidden"], "name --sealed with it"),
        (["--only", "third"], "expected one of hidden, first, second"),
    ],
)
def test_what_the_study_has_not_is_said_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match=said):
        study(monkeypatch, tmp_path, *words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--jobs", "0"], "expected 1 or more"),
        (["--minutes", "-1"], "expected minutes, 0 or more"),
        (["--minutes", "soon"], "expected minutes, 0 or more"),
    ],
)
def test_a_number_that_no_study_can_use_is_refused(
    capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    with pytest.raises(SystemExit):
        whole.study_parser().parse_args(["--data", ".", *words])
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_sealed_stream_comes_last() -> None:
    args = whole.study_parser().parse_args(["--data", ".", "--sealed"])
    assert [part.name for part in whole.chosen_parts(args)] == ["first", "second", "hidden"]


def test_the_list_cuts_no_name_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of 80 columns, as where the output is no terminal."""
    squares(tmp_path)
    longest = max(REAL, key=lambda part: len(part.name)).name
    method = max((name.partition("=")[0] for part in REAL for name in part.methods.split(",")), key=len)
    part = Part(longest, "squares", "6+2*3", f"{method}=finetune", WORDS)
    monkeypatch.setattr(whole, "PARTS", (part,))
    monkeypatch.setenv("COLUMNS", "80")
    study(monkeypatch, tmp_path, "--dry-run")
    listed = capsys.readouterr().out
    assert longest in listed
    assert method in listed
    assert "0,1,2,3,4" in listed


@pytest.mark.parametrize("part", REAL, ids=lambda part: part.name)
def test_every_part_of_the_study_asks_for_what_there_is(part: Part) -> None:
    args = whole.study_parser().parse_args(["--data", ".", "--weights", "w"])
    words = parser().parse_args(part.argv(args))
    assert len(parse_methods(words.methods, StageSettings(stage_steps=words.steps))) == len(
        re.split(r",(?=\w)", words.methods)
    )
    assert part.sealed == (part.data == "caltech101")
    assert words.select == ("validation" if part.name.startswith("heads") else "test")


@pytest.mark.parametrize("part", REAL, ids=lambda part: part.name)
def test_every_part_has_as_many_classes_as_it_asks_for(part: Part) -> None:
    """Of the sealed stream too, whose images nobody looks at before its turn: only class names are read."""
    file = Path(os.environ.get("STREAM_ODML_DATA", "")) / f"{part.data}.parquet"
    if not os.environ.get("STREAM_ODML_DATA") or not file.exists():
        pytest.skip(f"NOT CHECKED: set STREAM_ODML_DATA to the folder with {part.data}.parquet")
    names, labels = np.unique(pq.read_table(file, columns=["class_name"])["class_name"], return_inverse=True)
    build_stream(part.protocol, labels, [str(name) for name in names], 0, "test")


def test_models_that_several_methods_learn_alike_are_counted_once() -> None:
    names = "l2,sdc_l2,ldc_l2,l2_exact,distilled,joint,joint_exact,finetune,frozen_f0,fecam,exact_frozen"
    students = [shared_student(method) for method in parse_methods(names, StageSettings())]
    l2, sdc, ldc, l2_exact, distilled, joint, joint_exact, finetune, frozen, fecam, exact_frozen = students
    assert l2 == sdc == ldc != finetune
    assert joint == joint_exact != finetune
    assert fecam == exact_frozen != joint
    assert {l2_exact, distilled, frozen} == {""}


def test_what_pseudo_replay_pushes_is_in_the_guess(tmp_path: Path) -> None:
    words = ["--data", str(squares(tmp_path)), "--protocol", "6+2*3", "--work", str(tmp_path), *WORDS]
    words += ["--methods", "mean_l2,apr_l2=apr_l2:samples=4", "--select", "test"]
    study, (mean, apr), _ = plan(parser().parse_args(words))
    pushed = 4 * 6 + 4 * 9  # towards six old classes, then nine
    more = guess(study, apr, 2, is_there=True) - guess(study, mean, 2, is_there=True)
    assert more == pytest.approx(pushed * 3 * 3 * speed_of(study).image_s)


def loads_no_ray() -> None:
    """In a process that has loaded the command of the study, as this file does, and nothing of the tests' own."""
    parser()
    assert "ray" not in sys.modules


def test_the_study_runs_where_there_is_no_ray() -> None:
    process = multiprocessing.get_context("forkserver").Process(target=loads_no_ray)
    process.start()
    process.join(600)
    assert process.exitcode == 0


def test_bf16_is_the_precision_of_all_networks(tmp_path: Path) -> None:
    squares(tmp_path)
    words = [
        "--data",
        str(tmp_path / "squares.parquet"),
        "--protocol",
        "6+2*3",
        "--work",
        str(tmp_path),
        *WORDS,
    ]
    for precision in ("fp32", "bf16"):
        _, methods, _ = plan(
            parser().parse_args([*words, "--methods", "distilled", "--precision", precision])
        )
        assert (methods[0].settings.precision, methods[0].settings.old_precision) == (precision, precision)


def test_processes_side_by_side_measure_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each model is learnt once, after its base stage; what one job cannot do costs what rests on it and nothing else;
    time that is up leaves what is measured, and the same words go on from there."""
    folder = tmp_path / "one"
    folder.mkdir()
    squares(folder)
    study(monkeypatch, folder)
    squares(tmp_path)
    with pytest.raises(SystemExit, match=r"jobs are not done \(first base 0: not done\)"):
        study(monkeypatch, tmp_path, "--jobs", "2", "--minutes", "1e-6")
    assert not (tmp_path / "out/first.md").exists()
    words = (*WORDS, "--set", "miner=TripletMarginMiner", "--set", "metric_loss=pml:NoSuchLoss")
    monkeypatch.setattr(whole, "PARTS", (Part("broken", "squares", "6+2*3", "frozen_f0", words, "0"), *PARTS))
    with pytest.raises(SystemExit, match=r"2 of 10 jobs are not done \(broken base 0"):
        study(monkeypatch, tmp_path, "--jobs", "2")
    monkeypatch.setattr(whole, "PARTS", PARTS)
    capsys.readouterr()
    study(monkeypatch, tmp_path, "--dry-run")
    assert "Everything is measured." in capsys.readouterr().out
    study(monkeypatch, tmp_path, "--jobs", "2")
    for part in ("first", "second"):
        side_by_side, alone = (measured(at / "out" / f"{part}.json") for at in (tmp_path, folder))
        assert side_by_side == alone
        assert side_by_side
    assert (tmp_path / "out/second.md").exists()


def test_what_two_parts_share_is_one_job(tmp_path: Path) -> None:
    argv = ["--data", str(squares(tmp_path)), "--protocol", "6+2*3", "--work", str(tmp_path), *WORDS]
    listed: set[str] = set()
    first, second = (
        list(jobs_of(name, [*argv, "--methods", methods, "--seeds", "0"], 0, listed))
        for name, methods in (("first", "finetune,frozen_f0"), ("second", "finetune,l2"))
    )
    assert [job.methods for job in first] == [(), ("finetune",), ("frozen_f0",)]
    assert [job.methods for job in second] == [("l2",)]
    assert {job.base for job in (*first, *second)} == {first[0].base}


def measured(result: Path) -> list[str]:
    rows = [row for row in read_rows(result) if row["metric"] not in ("train_s", "pass_s")]
    return sorted(str(sorted((name, value) for name, value in row.items() if name != "run")) for row in rows)
