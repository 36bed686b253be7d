"""The study's methods whose head is solved: from what a gallery would hold, resumed as every other, measured by it."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.common import read_rows
from benchmarks.quality.arguments import parser, plan
from benchmarks.quality.data import load_images
from benchmarks.quality.exact import ExactRun, stored
from benchmarks.quality.measure import Measured, measure_unseen
from benchmarks.quality.methods import parse_methods
from benchmarks.quality.moving import MovingRun, floor_figures
from benchmarks.quality.protocols import build_stream
from benchmarks.quality.rows import Row
from benchmarks.quality.state import RunState, SolvedState
from benchmarks.quality.study import Run
from benchmarks.tests.squares import arguments, run, squares, with_lift, without_seconds
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, solve_head
from stream_odml.learn.drift import IdentityMap
from stream_odml.learn.embedder import build_embedder, embed, trunk_of
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.learn.settings import StageSettings
from stream_odml.pipeline.head_solving import Solved, solve

EXACT = "ours,exact_frozen,exact_always,joint_exact"


@pytest.fixture(scope="module")
def parquet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return squares(tmp_path_factory.mktemp("data"))


def test_methods_whose_head_is_solved_resume_and_are_measured_by_it(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    words = ("--commit", "c0ffee", "--methods", with_lift(16, EXACT))
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])
    states: dict[tuple[str, int], RunState] = {}
    keep = Run._keep

    def seen(self: Run, state: RunState, rows: list[Measured]) -> None:
        states[self.method.name, state.stage] = copy.deepcopy(state)
        keep(self, state, rows)

    trained_on: list[int] = []

    def noted(*rest: Any, trained: Collection[str], **more: Any) -> Solved:
        trained_on.append(len(trained))
        return solve(*rest, trained=trained, **more)

    with monkeypatch.context() as watched:
        watched.setattr(Run, "_keep", seen)
        watched.setattr("benchmarks.quality.exact.solve", noted)
        run(watched, arguments(parquet, whole, *words))
    frozen, moved, joint = trained_on[-9:-6], trained_on[-6:-3], trained_on[-3:]
    assert frozen == [6, 6, 6], "classes that a trunk was trained on"
    assert moved == joint == [6, 9, 12]
    figures = json.loads((whole / "quality-squares.json").read_text())["figures"]
    assert figures["exact_frozen/steps"] == 0
    assert figures["exact_always/steps"] == figures["joint_exact/steps"] == 4
    for name in ("exact_frozen", "joint_exact"):
        assert figures[f"{name}/last_r1_mapped"] == pytest.approx(
            figures[f"{name}/last_r1_reextracted"], abs=0.05
        )
    assert {"exact_frozen/unseen_r1_mapped", "exact_frozen/unseen_alone_r1_whitened"} <= figures.keys()

    check_versions(without_seconds(whole))
    seconds = {
        (row["method"], row["stage"])
        for row in read_rows(whole / "quality-squares.json")
        if row["metric"] == "pass_s"
    }
    assert seconds == {(name, stage) for name in EXACT.split(",") for stage in range(3)}

    check_states(states, parquet, whole / ".quality")

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


def test_a_trunk_that_stays_embeds_each_image_once_for_all_its_methods(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And each of them is charged for the images that it learns."""
    embedded: list[int] = []

    def counted(self: Run, model: Any, images: NDArray[np.int64]) -> Any:
        embedded.append(len(images))
        return embed_of_run(self, model, images)

    embed_of_run = Run._embed
    monkeypatch.setattr(Run, "_embed", counted)
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])
    run(monkeypatch, arguments(parquet, tmp_path, "--commit", "c0ffee", "--methods", "exact_frozen"))
    images = load_images(parquet, 16, tmp_path / ".quality")
    stream = build_stream("6+2*3", images.labels, images.class_names, 0, "test")
    learnt = sum(len(task.images) for task in stream.tasks)
    assert embedded == [learnt + len(stream.measured)]

    (shared,) = (tmp_path / ".quality").glob("features-*.npz")
    with np.load(shared) as arrays:
        assert 0 < arrays["image_s"] < 1
        np.savez(shared, features=arrays["features"], image_s=1.0)
    words = ("--methods", "exact_frozen,wide=exact_frozen:head.lift=16,fecam")
    run(monkeypatch, arguments(parquet, tmp_path, "--commit", "c0ffee", *words))
    assert len(embedded) == 1
    rows = read_rows(tmp_path / "quality-squares.json")
    for method in ("wide", "fecam"):
        seconds = sum(row["value"] for row in rows if row["method"] == method and row["metric"] == "pass_s")
        assert learnt <= seconds < learnt + 60, method


def check_states(states: Mapping[tuple[str, int], RunState], parquet: Path, cache: Path) -> None:
    """At the end a head is that of the features of all images learnt, each by the newest trunk or moved by its map."""
    images = load_images(parquet, 16, cache)
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
        assert state.solved.head.equals(state.solved.head.again(sums))


def check_versions(rows: list[Row]) -> None:
    """What the first version stored of base classes is what a gallery serves of them; under one trunk all versions have
    stored the same."""
    found = {
        (row["method"], row["gallery"], row["stage"], row["split"]): row["value"]
        for row in rows
        if row["metric"] == "recall_at_1"
    }
    for name in ("ours", "exact_frozen", "exact_always"):
        for t in range(3):
            first = found[name, "mapped", t, f"compatibility 0 {t}"]
            assert first == pytest.approx(found[name, "mapped", t, "base_alone"])
            for k in range(t + 1):
                stored_by = found[name, "mapped", t, f"compatibility {k} {t}"]
                assert stored_by == first or name == "exact_always"
        assert (name, "mapped", 1, "compatibility 2 1") not in found
    assert not [key for key in found if key[0] == "joint_exact" and key[3].startswith("compatibility")]


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


def finds(more: bool) -> Callable[..., NDArray[np.float32]]:
    """What a moving run finds of what is held out: half before, half or `more` after. Of one that embeds anew it finds
    half as mapped, and more, if it does, once embedded anew, which is asked last."""
    asked: dict[str, int] = defaultdict(int)

    def found(moving: MovingRun, before: SolvedState, *_: object) -> NDArray[np.float32]:
        last = 2 if moving.method.preset == "ours_backfill" else 1
        at = asked[moving.method.name] % (last + 1)
        asked[moving.method.name] += 1
        held = np.isin(before.images_N, moving._held_out(before.images_N)).sum()
        return (np.arange(held) % 4 < (3 if more and at == last else 2)).astype(np.float32)

    return found


@pytest.mark.parametrize("serves_more", [True, False])
def test_the_trunk_of_ours_moves_by_the_tasks_that_wait_where_it_serves_more(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serves_more: bool
) -> None:
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])
    monkeypatch.setattr("stream_odml.learn.trunk_gap.MIN_GAP", -1.0)
    monkeypatch.setattr("stream_odml.learn.trunk_gap.MAX_TRAINED", 0.5)
    monkeypatch.setattr("benchmarks.quality.moving.FEW_IMAGES", 4)
    monkeypatch.setattr(MovingRun, "_found", finds(serves_more))
    states: dict[tuple[str, int], RunState] = {}
    keep = Run._keep

    def seen(self: Run, state: RunState, rows: list[Measured]) -> None:
        states[self.method.name, state.stage] = copy.deepcopy(state)
        keep(self, state, rows)

    monkeypatch.setattr(Run, "_keep", seen)
    words = (
        "--commit",
        "c0ffee",
        "--methods",
        with_lift(0, "ours,ours_backfill,exact_frozen") + ",each=ours:trunk=distilled:head.lift=0",
    )
    run(monkeypatch, arguments(parquet, tmp_path, *words))
    figures = json.loads((tmp_path / "quality-squares.json").read_text())["figures"]
    images = load_images(parquet, 16, tmp_path / ".quality")
    tasks = build_stream("6+2*3", images.labels, images.class_names, 0, "test").tasks
    for name in ("ours", "ours_backfill"):
        assert [states[name, stage].taken for stage in range(2)] == [[1], [1, 0]], "trained on 6 of 9 classes"
        state = states[name, 2]
        assert figures[f"{name}/steps"] == 4, "two tasks at once, with the steps of both"
        assert state.taken == ([1, 1, 1] if serves_more else [1, 2, 2])
        assert isinstance(state.forward[-1], IdentityMap) != serves_more
        assert state.solved is not None
        exact = encode(embed(state.student, images.pixels[state.solved.images_N])).decode()
        same = (np.abs(state.solved.features_ND - exact) < 1e-4).all(axis=1)
        learnt_now = np.isin(state.solved.images_N, np.concatenate([task.images for task in tasks[1:]]))
        assert same[learnt_now].all(), "items whose images the stage read are embedded anew"
        assert same[~learnt_now].all() == (name == "ours_backfill" or not serves_more)
    assert [states["each", stage].taken for stage in range(3)] == (
        [[1], [1, 1], [1, 1, 1]] if serves_more else [[1], [1, 2], [1, 2, 2]]
    ), "tried with every task"
    noted = {
        (row["stage"], row["metric"]): row["value"]
        for row in without_seconds(tmp_path)
        if row["method"] == "ours"
    }
    assert [noted.get((stage, "trunk_trained")) for stage in range(3)] == [None, pytest.approx(2 / 3), 0.5]
    assert noted[2, "floor"] == 0.5
    assert noted[2, "over_floor"] == (0.75 if serves_more else 0.5)
    if not serves_more:
        assert figures["ours/last_r1_mapped"] == figures["exact_frozen/last_r1_mapped"]


def test_tasks_of_a_refused_stage_wait_for_later_ones(parquet: Path, tmp_path: Path) -> None:
    study, methods, _ = plan(parser().parse_args(arguments(parquet, tmp_path, "--methods", "ours")[1:]))
    moving = MovingRun(study, methods[0], 0, lambda *_: None)
    empty = np.empty((0, 0), np.float32)
    due = {}
    for taken in ([1, 2], [1, 2, 0], [1, 0, 0], [1, 2, 2]):
        state = RunState(0, *moving._start(), empty, empty, taken=taken)
        due[tuple(taken)] = list(moving._due_tasks(state))
    assert due == {(1, 2): [], (1, 2, 0): [1, 2], (1, 0, 0): [1, 2], (1, 2, 2): []}


def test_the_floor_looks_at_images_that_neither_head_was_solved_with(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.quality.moving.FEW_IMAGES", 4)
    study, methods, _ = plan(parser().parse_args(arguments(parquet, tmp_path, "--methods", "ours")[1:]))
    moving = MovingRun(study, methods[0], 0, lambda *_: None)
    images = np.concatenate([task.images for task in moving.stream.tasks])
    held = moving._held_out(images)
    labels = study.images.labels
    assert np.bincount(labels[held]).tolist() == [2] * 12
    assert sorted(moving._held_out(images[::-1])) == sorted(held)
    random = np.random.default_rng(0)
    trunk = build_embedder(replace(study.spec, head="discriminant"), 0).eval()
    features = stored(embed(trunk, study.images.pixels[images]))
    names = [study.images.class_names[c] for c in labels[images]]
    head = solve_head(ClassSums.of(Lift(features.shape[1]), encode(features), names))
    before = SolvedState(images, features, head, (12.0, float(len(images))))
    out = np.isin(images, held)
    learnt = [name for name, is_out in zip(names, out, strict=True) if not is_out]
    without = solve_head(ClassSums.of(head.lift, encode(features[~out]), learnt), head.settings)
    z_nd = without.known_part(encode(features[out]))
    near = z_nd @ z_nd.T - 9 * np.eye(len(z_nd))
    expected = (labels[images[out]][near.argmax(1)] == labels[images[out]]).mean()
    found = moving._found(before, trunk, features, None, held)
    assert found.mean() == pytest.approx(expected, abs=0.09)
    noise = random.normal(size=features.shape).astype(np.float32)
    lost = moving._found(before, trunk, np.where(out[:, None], noise, features), None, held)
    assert lost.mean() < expected
    figures = floor_figures(found, lost, labels[images[out]])
    assert figures["parent_recall_at_1/union"] == found.mean()
    assert figures["recall_at_1/union/served"] == lost.mean()
    by_class = [(lost - found)[labels[images[out]] == c] - (lost - found).mean() for c in range(12)]
    error = (12 / 11 * sum(part.sum() ** 2 for part in by_class)) ** 0.5 / len(found)
    assert figures["change_error/union"] == pytest.approx(error)


def test_a_value_of_the_head_stands_whatever_the_stream_chooses(
    parquet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.quality.report.recall_plots", lambda *_: [])
    monkeypatch.setattr("benchmarks.quality.report.heat_maps", lambda *_: [])
    heads: dict[str, list[DiscriminantHead]] = {}
    keep = Run._keep

    def seen(self: Run, state: RunState, rows: list[Measured]) -> None:
        assert state.solved is not None
        heads.setdefault(self.method.name, []).append(state.solved.head)
        keep(self, state, rows)

    monkeypatch.setattr(Run, "_keep", seen)
    plain = "exact_frozen:head.lift=0"
    methods = (
        f"standing={plain},other={plain}:head.dim=2:head.new_shrinkage=0.3,lifted=exact_frozen:head.lift=32"
    )
    run(monkeypatch, arguments(parquet, tmp_path, "--commit", "c0ffee", "--methods", methods))
    assert [len(of) for of in heads.values()] == [3, 3, 3]
    for standing, changed in zip(heads["standing"], heads["other"], strict=True):
        assert changed.settings == replace(standing.settings, dim=2, new_shrinkage=0.3)
        assert not np.allclose(changed.new_DD, standing.new_DD)
    assert [heads[name][-1].lift.width for name in ("standing", "lifted")] == [0, 32]


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ("distilled=distilled:head.dim=8", "the head of 'distilled' is not solved"),
        ("one=exact_frozen:head.shrinking=1", "unknown setting 'shrinking'"),
        ("one=exact_frozen:head.shrinkage=1.5", "shrinkage"),
        ("one=ranpac:head.dim=8", "unknown setting 'head.dim'"),
    ],
)
def test_a_value_that_no_head_has_is_refused(method: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        parse_methods(method, StageSettings())
