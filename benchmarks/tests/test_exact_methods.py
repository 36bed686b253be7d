"""The study's methods whose head is solved: from what a gallery would hold, resumed as every other, measured by it."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.quality.data import load_images
from benchmarks.quality.exact import ExactRun
from benchmarks.quality.measure import Measured, measure_unseen
from benchmarks.quality.protocols import build_stream
from benchmarks.quality.state import RunState
from benchmarks.quality.study import Run
from benchmarks.tests.squares import arguments, run, squares, without_seconds
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import solve_head
from stream_odml.learn.embedder import embed, trunk_of
from stream_odml.learn.feature_codes import encode

EXACT = "ours,exact_frozen,exact_always,joint_exact"


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("data"))


def test_methods_whose_head_is_solved_resume_and_are_measured_by_it(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ("--commit", "c0ffee", "--lift", "16", "--methods", EXACT)
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])
    states: dict[tuple[str, int], RunState] = {}
    keep = Run._keep

    def seen(self: Run, state: RunState, rows: list[Measured]) -> None:
        states[self.method.name, state.stage] = copy.deepcopy(state)
        keep(self, state, rows)

    with monkeypatch.context() as watched:
        watched.setattr(Run, "_keep", seen)
        run(watched, arguments(parquet, whole, *words))
    figures = json.loads((whole / "quality-squares.json").read_text())["figures"]
    assert figures["exact_frozen/steps"] == 0
    assert figures["exact_always/steps"] == figures["joint_exact/steps"] == 4
    for name in ("exact_frozen", "joint_exact"):
        assert figures[f"{name}/last_r1_mapped"] == pytest.approx(
            figures[f"{name}/last_r1_reextracted"], abs=0.05
        )
    assert {"exact_frozen/unseen_r1_mapped", "exact_frozen/unseen_alone_r1_whitened"} <= figures.keys()

    images = load_images(parquet, 16, whole / ".quality")
    tasks = build_stream("6+2*3", images.labels, images.class_names, 0, "test").tasks
    learnt = np.concatenate([task.images for task in tasks])
    for name in EXACT.split(","):
        state = states[name, 2]
        assert state.solved is not None
        assert sorted(state.solved.images_N) == sorted(learnt), "of every image learnt so far, once"
        trunk = trunk_of(state.student, replace(state.student.spec, head="discriminant"))
        exact = encode(embed(trunk, images.pixels[state.solved.images_N])).decode()
        newest = np.isin(state.solved.images_N, tasks[2].images)
        assert np.allclose(state.solved.features_ND[newest], exact[newest], atol=1e-4), "by the newest trunk"
        moved = not np.allclose(state.solved.features_ND[~newest], exact[~newest], atol=1e-4)
        assert moved == (name == "exact_always"), "older ones follow by maps where the trunk moved alone"
        names = [images.class_names[c] for c in images.labels[state.solved.images_N]]
        sums = ClassSums.of(state.solved.head.lift, encode(state.solved.features_ND), names)
        assert state.solved.head.equals(solve_head(sums, state.solved.head.settings))

    with monkeypatch.context() as kill:
        learn, budget = ExactRun._learn, iter(range(3))

        def learn_until_killed(self: ExactRun, *args: Any) -> None:
            if next(budget, None) is None:
                raise KeyboardInterrupt
            learn(self, *args)

        kill.setattr(ExactRun, "_learn", learn_until_killed)
        with pytest.raises(KeyboardInterrupt):
            run(kill, arguments(parquet, killed, *words))
    run(monkeypatch, arguments(parquet, killed, *words))
    assert without_seconds(killed) == without_seconds(whole)


def test_classes_to_come_are_measured_in_the_gallery_of_all_and_among_themselves() -> None:
    known, coming = np.array([True] * 4 + [False] * 5), np.array([False] * 4 + [True] * 4 + [False])
    hits = {9: [1, 0, 1, 1, 0, 0, 1, np.nan], 4: [1, 1, 0, np.nan]}
    asked: list[list[int]] = []

    def find(rows: np.ndarray) -> np.ndarray:
        asked.append(rows.tolist())
        return np.array(hits[9] if len(rows) == 8 else hits[4], np.float32)

    rows = {row["split"]: row["value"] for row in measure_unseen(known, coming, find, "mapped")}
    assert asked == [list(range(8)), [4, 5, 6, 7]]
    assert rows == {"unseen": pytest.approx(1 / 3), "seen": 0.75, "unseen_alone": pytest.approx(2 / 3)}
    assert list(measure_unseen(known, np.zeros(9, bool), find, "mapped")) == []
