"""The study: streams that leak nothing, and figures that can be checked by hand."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.quality.figures import curves, flat_figures, markdown_table, paired_table
from benchmarks.quality.measure import measure_stage
from benchmarks.quality.methods import parse_method, parse_methods
from benchmarks.quality.plots import recall_plots
from benchmarks.quality.protocols import Stream, build_stream, split_images
from benchmarks.quality.rows import _WATCHED as WATCHED
from benchmarks.quality.rows import Row, RowFile
from stream_odml.learn.settings import StageSettings

REPOSITORY = Path(__file__).resolve().parents[2]
KEEPS_ALONE = (
    "benchmarks.quality.rows",
    "benchmarks.quality.state",
    "stream_odml.config.service",
    "stream_odml.config.stream",
    "stream_odml.ingest.reasons",
    "stream_odml.store.version_metrics",
)
"""What keeps, names or refuses, and makes no figure another; of the stream's configuration see `_WATCHED`."""

LABELS = np.repeat(np.arange(40), 20)
NAMES = [f"{'abcdefgh'[c % 8]}/{c:02}" for c in range(40)]
PROTOCOLS = ["16+4*6", "alphabets", "alphabets:3*2", "repeat@0.5:16+4*6", "blurry@0.2:16+4*6"]


def stream(protocol: str, *, seed: int = 0, validation: bool = False) -> Stream:
    return build_stream(protocol, LABELS, NAMES, seed, "validation" if validation else "test")


@pytest.mark.parametrize("sizes", [[20] * 5, [2, 3, 4, 5, 50], [1, 1]])
def test_a_split_has_every_image_once(sizes: list[int]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    split = split_images(labels, 3)
    together = np.concatenate([split.train, split.validation, split.test])
    assert sorted(together) == list(range(len(labels)))
    assert set(np.unique(labels[split.train])) == {c for c in range(len(sizes)) if sizes[c] > 0}


@pytest.mark.parametrize(
    ("images", "validation", "test"), [(1, 0, 0), (3, 0, 1), (4, 0, 2), (5, 0, 2), (6, 2, 2)]
)
def test_a_class_is_measured_from_four_images_on_and_on_validation_from_six(
    images: int, validation: int, test: int
) -> None:
    """As the study's page says to those who bring their own: a figure needs two of a class."""
    split = split_images(np.zeros(images, np.int64), 0)
    assert (len(split.validation), len(split.test)) == (validation, test)
    assert len(split.train) >= 1


def test_a_split_has_the_shares_of_each_class_and_follows_the_seed() -> None:
    split = split_images(LABELS, 0)
    assert np.bincount(LABELS[split.test]).tolist() == [8] * 40
    assert np.bincount(LABELS[split.validation]).tolist() == [3] * 40
    assert np.array_equal(split.test, split_images(LABELS, 0).test)
    assert not np.array_equal(split.test, split_images(LABELS, 1).test)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_image_is_learnt_twice_or_measured_as_well(protocol: str) -> None:
    for validation in (False, True):
        s = stream(protocol, validation=validation)
        learnt = np.concatenate([task.images for task in s.tasks])
        assert len(set(learnt)) == len(learnt)
        assert not set(learnt) & set(s.measured)
    test, validation_stream = stream(protocol), stream(protocol, validation=True)
    chosen_with = {*validation_stream.measured, *(i for task in validation_stream.tasks for i in task.images)}
    assert not chosen_with & set(test.measured)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_measured_image_arrives_with_the_first_task_of_its_class(protocol: str) -> None:
    s = stream(protocol)
    for image, arrival in zip(s.measured, s.arrival, strict=True):
        shown = [t for t, task in enumerate(s.tasks) if LABELS[image] in LABELS[task.images]]
        assert arrival == shown[0]
        assert LABELS[image] in s.tasks[arrival].arriving


def test_disjoint_tasks_show_only_new_classes_and_every_image_of_them() -> None:
    s = stream("16+4*6")
    assert [len(task.arriving) for task in s.tasks] == [16, 6, 6, 6, 6]
    for task in s.tasks:
        assert set(LABELS[task.images]) == set(task.arriving)
        assert len(task.images) == 12 * len(task.arriving)


def test_alphabets_come_whole() -> None:
    s = stream("alphabets:3*2")
    prefixes = [{NAMES[c][0] for c in task.arriving} for task in s.tasks]
    assert [len(p) for p in prefixes] == [3, 1, 1]
    assert all(len(task.arriving) == 5 * len(p) for task, p in zip(s.tasks, prefixes, strict=True))


def test_repeated_classes_bring_images_that_were_never_shown() -> None:
    s = stream("repeat@0.5:16+4*6")
    for task in s.tasks[1:]:
        assert len(set(LABELS[task.images])) == 9
        assert len(task.arriving) == 6


def test_blurred_tasks_hold_a_share_of_each_others_images() -> None:
    s = stream("blurry@0.2:16+4*6")
    assert sum(len(task.images) for task in s.tasks) == 40 * 12
    assert sum(len(task.arriving) for task in s.tasks) == 40
    assert any(len(set(LABELS[task.images])) > len(task.arriving) for task in s.tasks[1:])


@pytest.mark.parametrize("protocol", ["41+1*2", "1+2*2", "16+4*1", "alphabets:8", "16+4", "blury:16+4*6"])
def test_a_protocol_that_cannot_be_is_refused(protocol: str) -> None:
    with pytest.raises(ValueError, match=r"protocol|alphabets"):
        stream(protocol)


def test_a_stream_that_could_not_be_learnt_or_measured_is_refused() -> None:
    few, names = np.repeat(np.arange(20), 2), [f"c{c}" for c in range(20)]
    with pytest.raises(ValueError, match="without an image"):
        build_stream("blurry@.9:2+9*2", few, names, 0, "test")
    with pytest.raises(ValueError, match="no class of the first task has two validation images"):
        build_stream("4+2*2", few, names, 0, "validation")


def test_methods_vary_a_preset_and_unknown_settings_are_refused() -> None:
    common = StageSettings(stage_steps=7)
    method = parse_method("strong=l2:weight_distill=20:gallery_map=kernel", common)
    assert (method.name, method.preset) == ("strong", "l2")
    assert (method.settings.weight_distill, method.settings.gallery_map) == (20, "kernel")
    assert method.settings.stage_steps == 7
    with pytest.raises(ValueError, match="unknown setting 'weight'"):
        parse_method("x=l2:weight=1", common)
    with pytest.raises(ValueError, match="unknown method"):
        parse_method("theirs", common)
    library = parse_method("ms=l2:metric_loss=pml:MultiSimilarityLoss:weight_distill=3", common)
    assert (library.settings.metric_loss, library.settings.weight_distill) == ("pml:MultiSimilarityLoss", 3)


def test_methods_between_commas_are_of_different_names_and_settings() -> None:
    common = StageSettings()
    text = 'a=l2:metric_loss=pml:TripletMarginLoss:metric_loss_args={"margin":0.2,"smooth_loss":true},ours'
    first, second = parse_methods(text, common)
    assert first.settings.metric_loss_args == {"margin": 0.2, "smooth_loss": True}
    assert (first.name, second.name) == ("a", "ours")
    for wrong, said in (
        ("x=l2,x=finetune", "'x' is asked for twice"),
        ("a=l2,l2", "'a' and 'l2' are the same"),
        ("x=l2:base_steps=9", "the stage that all methods start from"),
        ("x=l2:weight_distill=abc", "weight_distill: Input should be a valid number"),
        ("x=l2:stage_steps=1.5", "stage_steps: Input should be a valid integer"),
        ("x=l2:whitening=2", "whitening"),
        ("$x$=l2", "expected letters"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            parse_methods(wrong, common)
    assert parse_method("x=l2:augment_flip=False", common).settings.augment_flip is False


def test_recall_of_points_placed_by_hand() -> None:
    """Two base classes lie right; of the newcomers one lies on a base class."""
    angle = np.radians([0, 1, 90, 91, 180, 181, 0.5, 90.5])
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    labels = np.asarray([0, 0, 1, 1, 2, 2, 3, 3])
    arrival = np.asarray([0, 0, 0, 0, 1, 1, 1, 1])
    rows = list(measure_stage(1, labels, arrival, vectors, {"mapped": vectors}))
    found = {r["split"]: r["value"] for r in rows if r["metric"] == "recall_at_1"}
    assert found["base_alone"] == 1.0  # without newcomers every base image finds its class
    assert found["old"] == found["stage 0"] == 0.0  # with them, the newcomers stand nearer
    assert found["new"] == 0.5
    assert found["union"] == 0.25


def test_a_line_cut_short_by_a_kill_costs_only_itself(tmp_path: Path) -> None:
    file = RowFile(tmp_path / "rows.jsonl")
    first = {
        "run": "a",
        "stage": 0,
        "split": "union",
        "gallery": "stale",
        "metric": "recall_at_1",
        "value": 0.1,
    }
    file.append([first])
    with file.path.open("a") as broken:
        broken.write('{"run": "a", "sta')
    seconds = {"metric": "train_s", "split": "all", "gallery": "none"}
    file.append([{**first, "value": 0.2}, {**first, "run": "b"}, {**first, **seconds, "run": "b"}])
    file.append([{**first, **seconds, "run": "a", "stage": 1}])  # of whose stages one is not there
    assert [row["value"] for row in file.read()] == [0.2, 0.1, 0.1, 0.1]
    assert file.finished() == {"b"}


def rows_of(method: str, seed: int, union: list[float]) -> list[Row]:
    shared = {"run": f"{method}{seed}", "method": method, "seed": seed, "metric": "recall_at_1"}
    rows: list[Row] = [
        {**shared, "split": split, "gallery": "reextracted", "stage": t, "value": value}
        for split in ("union", "base_alone")
        for t, value in enumerate(union)
    ]
    return [
        *rows,
        {**shared, "split": "all", "gallery": "none", "stage": 2, "metric": "train_s", "value": 5.0},
    ]


def test_figures_are_means_over_seeds_and_what_is_not_measured_is_absent() -> None:
    rows = [*rows_of("ours", 0, [0.9, 0.8, 0.7]), *rows_of("ours", 1, [0.9, 0.6, 0.6])]
    unfinished = rows_of("l2", 0, [0.9, 0.8])[:-1]
    figures = flat_figures([*rows, *unfinished], ["ours", "l2"])
    assert figures["ours/avg_inc_r1_reextracted"] == pytest.approx(0.75)
    assert figures["ours/avg_inc_r1_std"] == pytest.approx(0.0707, abs=1e-4)
    assert figures["ours/last_r1_reextracted"] == pytest.approx(0.65)
    assert figures["ours/base_forgetting"] == pytest.approx(0.25)
    served = [
        {**row, "gallery": "mapped", "value": row["value"] - 0.1 * (row["stage"] == 2)}
        for row in rows
        if row["split"] == "base_alone"
    ]
    assert flat_figures([*rows, *served], ["ours"])["ours/base_forgetting_mapped"] == pytest.approx(0.35)
    assert "ours/backward_transfer_reextracted" not in figures  # no class was looked at by its task
    by_task = [(0, 0, 0.9), (1, 0, 0.95), (2, 0, 0.8), (1, 1, 0.7), (2, 1, 0.75), (2, 2, 0.6)]
    shared = {"method": "ours", "metric": "recall_at_1", "gallery": "reextracted", "run": "ours0", "seed": 0}
    more = [{**shared, "split": f"stage {k}", "stage": t, "value": value} for t, k, value in by_task]
    figures = flat_figures([*rows, *more], ["ours"])
    assert figures["ours/backward_transfer_reextracted"] == pytest.approx((-0.1 + 0.05) / 2)
    assert figures["ours/forgetting_reextracted"] == pytest.approx((0.15 - 0.05) / 2)
    assert figures["ours/last_base_r1_reextracted"] == 0.8
    assert figures["ours/last_later_r1_reextracted"] == pytest.approx((0.75 + 0.6) / 2)
    assert "ours/last_r1_mapped" not in figures
    assert not [name for name in figures if name.startswith("l2/")]
    assert "| ours | 2 | 0.7500 ± 0.0707 | 0.6500 ± 0.0707 |" in markdown_table(rows, ["ours", "l2"])
    paired = paired_table([*rows, *rows_of("fecd", 1, [0.9, 0.5, 0.5])], ["ours", "fecd"], "ours")
    assert "| fecd | +0.0667 | +0.1000 | – |" in paired


def test_forward_transfer_is_against_the_model_of_the_first_task_under_the_same_kind_of_head() -> None:
    def coming(method: str, seed: int, values: list[float], form: str = "mapped") -> list[Row]:
        shared = {"run": f"{method}{seed}", "method": method, "seed": seed, "metric": "recall_at_1"}
        rows: list[Row] = [
            {**shared, "split": "unseen_alone", "gallery": form, "stage": t, "value": value}
            for t, value in enumerate(values)
        ]
        return [*rows, *rows_of(method, seed, [0.9, 0.9, 0.9])]

    trained = [
        *coming("l2", 0, [0.1, 0.5, 0.7]),
        *coming("frozen_f0", 0, [0.9, 0.4, 0.4]),
        *coming("l2", 1, [0.1, 0.9, 0.9]),
    ]
    solved = [
        row
        for name, values in (("ours", [0.2, 0.6, 0.9]), ("exact_frozen", [0.2, 0.6, 0.7]))
        for form in ("mapped", "whitened")
        for row in coming(name, 0, values, form)
    ]
    figures = flat_figures([*trained, *solved], ["l2", "frozen_f0", "ours"])
    assert figures["l2/forward_transfer_mapped"] == pytest.approx((0.1 + 0.3) / 2), (
        "of the seed that both have"
    )
    assert figures["frozen_f0/forward_transfer_mapped"] == 0
    assert figures["ours/forward_transfer_mapped"] == pytest.approx((0 + 0.2) / 2)
    assert "l2/forward_transfer_mapped" not in flat_figures(coming("l2", 0, [0.1, 0.5]), ["l2"])


def test_seconds_after_the_last_step_are_summed_over_the_later_tasks() -> None:
    shared = {"run": "a", "method": "l2", "seed": 0, "split": "all", "gallery": "none", "metric": "pass_s"}
    passes = [{**shared, "stage": t, "value": value} for t, value in enumerate([9.0, 2.0, 3.0])]
    assert flat_figures([*rows_of("l2", 0, [0.9, 0.9, 0.9]), *passes], ["l2"])["l2/pass_s"] == 5.0


def test_a_seed_that_is_under_way_changes_no_plot() -> None:
    def recalls(seed: int, stages: int) -> list[Row]:
        shared = {"method": "l2", "seed": seed, "split": "union", "metric": "recall_at_1"}
        return [
            {**shared, "gallery": form, "stage": t, "value": 0.9 - 0.1 * t - 0.2 * seed}
            for form in ("reextracted", "mapped")
            for t in range(stages)
        ]

    done = list(recall_plots(curves(recalls(0, 3)), ["l2"]))
    assert list(recall_plots(curves(recalls(0, 3) + recalls(1, 1)), ["l2"])) == done
    assert list(recall_plots(curves(recalls(0, 3) + recalls(1, 3)), ["l2"])) != done


def test_the_commit_of_rows_watches_all_that_the_measuring_code_takes_from_elsewhere() -> None:
    """A rule of the floor or a formula of recall that changes must not leave rows that count as made by it."""
    watched = [REPOSITORY / name for name in WATCHED]
    known = {file for path in watched for file in (path.rglob("*.py") if path.is_dir() else [path])}
    assert all(path.exists() for path in watched)
    for file in sorted(path for path in known if path.parent.name == "quality"):
        for module in re.findall(
            r"^from ((?:benchmarks|stream_odml)[\w.]+) import", file.read_text(), re.MULTILINE
        ):
            if module not in KEEPS_ALONE:
                assert REPOSITORY / f"{module.replace('.', '/')}.py" in known, (file.name, module)
