"""The quality gate compares a stage with the version it would replace, split by split."""

from __future__ import annotations

import pytest

from stream_odml.config.gate import GateConfig
from stream_odml.pipeline.gate import floor, verdict

GATE = GateConfig(max_new_loss=0.05, max_old_loss=0.02)


def figures(old: tuple[float, float], new: tuple[float, float]) -> dict[str, float]:
    """Served Recall@1 (parent, stage) on old and on new classes."""
    return {
        "parent_recall_at_1/old": old[0],
        "recall_at_1/old/served": old[1],
        "parent_recall_at_1/new": new[0],
        "recall_at_1/new/served": new[1],
    }


def test_a_better_stage_passes() -> None:
    assert verdict(GATE, figures(old=(0.7, 0.7), new=(0.5, 0.8))) is None


@pytest.mark.parametrize(
    ("old", "new", "split"), [((0.7, 0.67), (0.5, 0.8), "old"), ((0.7, 0.7), (0.5, 0.4), "new")]
)
def test_a_stage_that_hurts_is_refused(
    old: tuple[float, float], new: tuple[float, float], split: str
) -> None:
    assert f"on {split} classes would fall" in str(verdict(GATE, figures(old, new)))


def test_a_task_whose_images_are_all_alike_is_refused() -> None:
    better = figures(old=(0.7, 0.7), new=(0.5, 0.8))
    assert "are alike" in str(verdict(GATE, {**better, "task_spread": 1e-9}))
    assert verdict(GATE, {**better, "task_spread": 0.02}) is None


def test_losses_within_the_bound_pass() -> None:
    assert verdict(GATE, figures(old=(0.70, 0.685), new=(0.50, 0.46))) is None


def test_an_estimate_stands_in_for_old_classes_without_held_out_images() -> None:
    estimated = {"parent_recall_at_1/old/estimated": 0.7, "recall_at_1/old/estimated": 0.5}
    assert "estimated Recall@1 on old classes would fall" in str(verdict(GATE, estimated))
    assert verdict(GATE, {**estimated, "recall_at_1/old/estimated": 0.6}) is None


def test_nothing_held_out_is_nothing_to_compare() -> None:
    assert verdict(GATE, {}) is None


def test_a_gate_that_is_off_passes_all() -> None:
    assert verdict(GateConfig(enabled=False), figures((0.9, 0.0), (0.9, 0.0))) is None


def test_a_loss_that_few_images_cannot_tell_from_chance_passes_and_a_sure_one_does_not() -> None:
    loss = figures(old=(0.90, 0.86), new=(0.5, 0.8))
    assert verdict(GATE, {**loss, "change_error/old": 0.02, "queries/old": 60.0}) is None
    said = str(verdict(GATE, {**loss, "change_error/old": 0.01, "queries/old": 900.0}))
    assert "from 0.900 to 0.860, by more than 0.02 (standard error 0.010, 900 held-out images)" in said
    exact = GateConfig(max_old_loss=0.02, certainty=0.0)
    assert verdict(exact, {**loss, "change_error/old": 0.02, "queries/old": 60.0}) is not None


def test_a_disaster_is_refused_however_few_the_images() -> None:
    disaster = {**figures(old=(0.9, 0.2), new=(0.5, 0.8)), "change_error/old": 0.15, "queries/old": 10.0}
    assert "on old classes would fall" in str(verdict(GATE, disaster))


@pytest.mark.parametrize(
    ("kind", "before", "after", "says"),
    [
        ("slow", 0.70, 0.71, None),
        ("slow", 0.70, 0.70, "which is not above the 0.700 of the version without it"),
        ("renew", 0.70, 0.69, None),
        ("renew", 0.70, 0.60, "which is not above"),
    ],
)
@pytest.mark.parametrize("form", ["served", "estimated"])
def test_the_floor_of_what_improves_is_the_version_without_it(
    kind: str, before: float, after: float, says: str | None, form: str
) -> None:
    estimated = "/estimated" if form == "estimated" else ""
    figures = {
        "kind": kind,
        f"parent_recall_at_1/union{estimated}": before,
        f"recall_at_1/union/{form}": after,
    }
    refusal = floor(GateConfig(), figures)
    assert (refusal is None) == (says is None)
    assert says is None or says in (refusal or "")
    assert floor(GateConfig(enabled=False), figures) is None


def test_a_trunk_of_which_nothing_is_measured_is_not_published() -> None:
    assert "no image is held out" in (floor(GateConfig(), {"kind": "slow"}) or "")
    assert floor(GateConfig(), {"kind": "renew"}) is None, "items are as exact as they can be"


@pytest.mark.parametrize(
    ("served", "anew", "says"),
    [
        (0.68, 0.72, None),
        (0.72, 0.72, None),
        (0.68, 0.70, "re-extracted Recall@1 over all classes would be 0.700, which is not above the 0.700"),
        (0.72, 0.69, "re-extracted Recall@1 over all classes would be 0.690"),
        (0.60, 0.75, "would fall from 0.700 to 0.600 until all items are embedded anew, by more than 0.05"),
    ],
)
def test_where_all_is_embedded_anew_the_floor_asks_what_is_served_then_and_meanwhile(
    served: float, anew: float, says: str | None
) -> None:
    figures = {
        "kind": "slow",
        "parent_recall_at_1/union": 0.70,
        "recall_at_1/union/served": served,
        "recall_at_1/union/reextracted": anew,
    }
    refusal = floor(GATE.model_copy(update={"max_old_loss": 0.05}), figures, renewed=True)
    assert (refusal is None) == (says is None)
    assert says is None or says in (refusal or "")
    mapped = floor(GATE, figures)
    assert (mapped is None) == (served > 0.70), "where images are gone the map has to serve more"


def test_an_estimate_knows_only_the_map_also_where_all_is_embedded_anew() -> None:
    figures = {
        "kind": "slow",
        "parent_recall_at_1/union/estimated": 0.70,
        "recall_at_1/union/reextracted": 0.9,
    }
    assert floor(GATE, {**figures, "recall_at_1/union/estimated": 0.69}, renewed=True) is not None
    assert floor(GATE, {**figures, "recall_at_1/union/estimated": 0.71}, renewed=True) is None
