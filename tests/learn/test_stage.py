"""The stage learner: what it promises about steps, progress, divergence and what it leaves behind."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import IdentityMap
from stream_odml.learn.embedder import Embedder, as_images, build_embedder, embed
from stream_odml.learn.settings import METHODS, StageSettings, method_settings
from stream_odml.learn.stage import StageDiverged, StageLearner
from tests.learn.tiny import CLASSES, SETTINGS, SPEC, after, batch, finish, learn, learner, task

Model = tuple[Embedder, ClassBank]


@pytest.fixture(scope="module")
def base() -> Model:
    return after(1)


@pytest.fixture(scope="module")
def second() -> Model:
    return after(2)


def losses(stage: StageLearner, t: int, steps: int) -> list[dict[str, float]]:
    start = stage.next_step
    return [stage.step(*batch(t, step)).losses for step in range(start, start + steps)]


def test_the_terms_of_each_stage() -> None:
    zero, first, second = after(0), after(1), after(2)
    every = replace(SETTINGS, weight_repel=0.3)
    assert set(losses(learner(0, *zero), 0, 1)[0]) == {"total", "metric_student"}
    new = {"total", "metric_student", "metric_peer", "peer", "old", "distill", "composites", "repel"}
    assert set(losses(learner(1, *first, every), 1, 1)[0]) == new
    assert set(losses(learner(1, *first), 1, 1)[0]) == new - {"repel"}
    terms = losses(learner(2, *second, every), 2, 1)[0]
    assert set(terms) == {*new, "virtual"}
    assert terms["total"] == pytest.approx(sum(v for k, v in terms.items() if k != "total"))


def test_the_weight_of_composites_grows_with_the_old_classes_to_each_new_one(base: Model) -> None:
    old, bank = base
    names = [f"more {i}" for i in range(3 * len(bank))]
    tripled = [np.concatenate([part] * 3) for part in (bank.counts, bank.means, bank.directions)]
    crowd = bank.with_classes(names, "v1", *tripled)
    settings = replace(SETTINGS, weight_virtual=0.0)
    # The first step moves both alike: at its start nothing has drifted, and the anchor has no gradient.
    few, many = (losses(learner(1, old, b, settings), 1, 2)[1]["composites"] for b in (bank, crowd))
    assert few > 0
    assert many == pytest.approx(2 * few)


def test_the_base_stage_takes_its_own_steps_and_rate() -> None:
    settings = replace(SETTINGS, base_steps=9, stage_steps=4)
    assert learner(0, *after(0), settings).total_steps == 9
    assert learner(1, *after(1), settings).total_steps == 4


def test_as_many_labels_as_images_are_asked_for() -> None:
    pixels, labels = batch(0, 0)
    array: Any = pixels.numpy()
    for images, said in ((pixels[1:], "expected tensors of as many"), (array, "torch.from_numpy")):
        with pytest.raises(ValueError, match=said):
            learner(0, *after(0)).step(images, labels)


def test_learning_lowers_the_loss() -> None:
    settings = replace(SETTINGS, base_steps=40, augment=0.0)
    report = losses(learner(0, *after(0), settings), 0, 40)
    first, last = (np.mean([r["total"] for r in part]) for part in (report[:5], report[-5:]))
    assert last < 0.6 * first


def test_the_same_seed_gives_the_same_bits(second: Model) -> None:
    assert losses(learner(2, *second), 2, 4) == losses(learner(2, *second), 2, 4)


def test_the_global_random_state_is_neither_used_nor_moved(second: Model) -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = losses(learner(2, *second), 2, 2)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    assert losses(learner(2, *second), 2, 2) == first


@pytest.mark.parametrize("cut", [0, 1, 3])
def test_a_resumed_stage_goes_on_to_the_same_bits(second: Model, cut: int) -> None:
    settings = replace(SETTINGS, metric_loss="pml:ProxyAnchorLoss", peer_every=2, augment_colour=0.5)
    whole, begun, resumed = (learner(2, *second, settings) for _ in range(3))
    expected = losses(whole, 2, 6)[cut:]
    losses(begun, 2, cut)
    state = begun.state_dict()
    losses(begun, 2, 1)  # the state is a copy
    resumed.load_state_dict(state)
    assert losses(resumed, 2, 6 - cut) == expected
    for key, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[key]), key
    a, b = finish(whole, 2), finish(resumed, 2)
    assert np.array_equal(a.embeddings, b.embeddings)
    assert a.bank.to_bytes() == b.bank.to_bytes()
    assert a.forward.to_bytes() == b.forward.to_bytes()


def test_progress_of_another_stage_is_refused(second: Model) -> None:
    other = learner(2, *second, replace(SETTINGS, weight_peer=0.0)).state_dict()
    with pytest.raises(ValueError, match="progress of another stage"):
        learner(2, *second).load_state_dict(other)


def test_the_parent_is_copied_and_never_changed(base: Model) -> None:
    old, bank = base
    before = {k: v.clone() for k, v in old.state_dict().items()}
    learn(1, old, bank)
    assert all(torch.equal(v, before[k]) for k, v in old.state_dict().items())


def test_the_student_starts_from_the_parent_and_the_peer_from_the_seed(base: Model) -> None:
    stage = learner(1, *base)
    images = as_images(task(1)[0])
    assert stage.networks.peer is not None
    fresh = build_embedder(SPEC, 1)
    assert torch.allclose(stage.networks.student(images), base[0](images), atol=1e-5)
    assert torch.allclose(stage.networks.peer(images), fresh(images), atol=1e-5)
    assert not torch.allclose(fresh(images), base[0](images), atol=1e-2)


@pytest.mark.parametrize(("t", "changes"), [(0, {}), (1, {"weight_peer": 0.0})])
def test_no_peer_is_built_where_none_is_asked(t: int, changes: dict[str, float]) -> None:
    assert learner(t, *after(t), replace(SETTINGS, **changes)).networks.peer is None  # type: ignore[arg-type]


def test_the_peer_may_sit_out(second: Model) -> None:
    stage = learner(2, *second, replace(SETTINGS, peer_every=3))
    asked = ["metric_peer" in report for report in losses(stage, 2, 6)]
    assert asked == [True, False, False, True, False, False]


def test_what_a_stage_leaves_behind(base: Model) -> None:
    old, bank = base
    outcome = learn(1, old, bank, replace(SETTINGS, error_whitening=0.0))
    pixels, labels, names = task(1)
    order = np.argsort(outcome.indices)
    assert sorted(outcome.indices) == list(range(len(labels)))
    assert outcome.embeddings[order] == pytest.approx(embed(outcome.student, pixels), abs=1e-4)
    assert outcome.bank.version == "v2"
    assert outcome.bank.keys[CLASSES:] == [(name, "v2") for name in names]
    means = [embed(outcome.student, pixels[labels == c]).mean(0) for c in range(CLASSES)]
    assert outcome.bank.means[CLASSES:] == pytest.approx(np.stack(means), abs=1e-4)
    parent, child = embed(old, pixels), embed(outcome.student, pixels)
    for mapped, target, start in (
        (outcome.forward.apply(parent), child, parent),
        (outcome.backward.apply(child), parent, child),
    ):
        assert np.square(mapped - target).sum() < np.square(start - target).sum()
    assert outcome.drift["images"] == len(labels)
    relative = np.sqrt(np.square(child - parent).sum() / np.square(parent).sum())
    assert outcome.drift["drift_relative"] == pytest.approx(relative, rel=1e-4)
    assert not outcome.student.training


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns_three_tasks(method: str) -> None:
    settings = method_settings(method, replace(SETTINGS, base_steps=2))
    settings = replace(
        settings, base_steps=min(settings.base_steps, 2), stage_steps=min(settings.stage_steps, 2)
    )
    old, bank = after(0)
    for t in range(3):
        outcome = learn(t, old, bank, settings)
        same = all(
            torch.equal(a, b) for a, b in zip(old.parameters(), outcome.student.parameters(), strict=True)
        )
        assert same == (method == "frozen_pretrained" or (method == "frozen_f0" and t > 0))
        assert np.isfinite(outcome.forward.apply(outcome.embeddings)).all()
        old, bank = outcome.student, outcome.bank
    assert len(bank) == 3 * CLASSES


@pytest.mark.parametrize("gallery_map", ["affine", "kernel", "affine+kernel"])
def test_every_gallery_map_shrinks_the_drift(base: Model, gallery_map: str) -> None:
    old, bank = base
    changes = {"weight_distill": 0.0, "learning_rate": 3e-3}
    settings = replace(SETTINGS, gallery_map=gallery_map, kernel_pairs=20, **changes)  # type: ignore[arg-type]
    outcome = learn(1, old, bank, settings)
    pixels = task(1)[0]
    parent, child = embed(old, pixels), embed(outcome.student, pixels)
    missed = np.square(outcome.forward.apply(parent) - child).sum(1).mean()
    assert missed < 0.6 * np.square(parent - child).sum(1).mean()
    assert outcome.drift["parent_variance"] == pytest.approx(
        np.square(parent - parent.mean(0)).sum(1).mean(), rel=1e-4
    )
    # Of classes that it was not fitted to it misses more.
    assert missed < outcome.drift["forward_error"] < np.square(child).sum(1).mean()


def test_a_gallery_that_stays_misses_the_whole_drift(base: Model) -> None:
    old, bank = base
    outcome = learn(1, old, bank, replace(SETTINGS, gallery_map="identity"))
    pixels = task(1)[0]
    drift = np.square(embed(old, pixels) - embed(outcome.student, pixels)).sum(1).mean()
    assert outcome.drift["forward_error"] == pytest.approx(drift, rel=1e-4)


def test_old_share_averages_the_weights(base: Model) -> None:
    old, bank = base
    plain, halved = (
        learn(1, old, bank, replace(SETTINGS, old_share=share, error_whitening=0.0)) for share in (0.0, 0.5)
    )
    for start, end, half in zip(
        old.parameters(), plain.student.parameters(), halved.student.parameters(), strict=True
    ):
        assert torch.allclose(half, (start + end) / 2, atol=1e-6)


@pytest.mark.parametrize("picture", [0, 255])
@pytest.mark.parametrize("labels", [[0] * 8, [0, 0, 0, 0, 1, 1, 1, 1]])
def test_blank_or_identical_images_and_a_lone_class_stay_finite(
    base: Model, picture: int, labels: list[int]
) -> None:
    headless = replace(SPEC, head="none", dim=64)  # a black image then embeds to exactly zero
    for old, bank in (base, (build_embedder(headless, 0), ClassBank.empty(64))):
        stage = learner(1, old, bank)
        pixels, labels_b = torch.full((8, 16, 16, 3), picture, dtype=torch.uint8), torch.tensor(labels)
        for _ in range(stage.total_steps):
            report = stage.step(pixels, labels_b)
            assert np.isfinite(report.losses["total"])
            if len(set(labels)) == 1:
                assert report.losses["metric_student"] == 0.0
        names = [f"n{c}" for c in range(CLASSES)]
        outcome = stage.finish([(pixels, labels_b, torch.arange(8))], names)
        assert len(outcome.bank) == len(bank) + len(set(labels))
        assert np.isfinite(outcome.forward.apply(outcome.embeddings)).all()
        assert all(bool(torch.isfinite(p).all()) for p in outcome.student.parameters())


def test_a_nan_stops_the_stage_before_it_touches_a_weight(base: Model) -> None:
    stage = learner(1, *base)
    broken: Tensor = next(stage.networks.student.parameters())
    with torch.no_grad():
        broken[0] = torch.nan
    others = [p.clone() for p in list(stage.networks.parameters())[1:]]
    with pytest.raises(StageDiverged, match="lower learning_rate"):
        stage.step(*batch(1, 0))
    assert all(torch.equal(a, b) for a, b in zip(others, list(stage.networks.parameters())[1:], strict=True))
    with pytest.raises(StageDiverged, match="not finite after its last step"):
        finish(stage, 1)


def test_a_task_of_no_image_leaves_the_bank_and_the_maps_alone(base: Model) -> None:
    old, bank = base
    outcome = learner(1, old, bank).finish([], [f"n{c}" for c in range(CLASSES)])
    assert outcome.bank.keys == bank.keys
    assert isinstance(outcome.forward, IdentityMap)
    assert outcome.embeddings.shape == (0, SPEC.dim)


def test_misuse_says_what_was_expected(base: Model) -> None:
    old, bank = base
    with pytest.raises(ValueError, match="they must be one version's"):
        learner(1, old, ClassBank.empty(3))
    with pytest.raises(ValueError, match="expected at least 1"):
        StageLearner(SETTINGS, old, bank, n_classes=0, version_id="v", seed=0)
    stage = learner(1, old, bank, replace(SETTINGS, stage_steps=0))
    with pytest.raises(ValueError, match="call finish"):
        stage.step(*batch(1, 0))
    with pytest.raises(ValueError, match="expected 6"):
        stage.finish([], ["one"])
    pixels, labels, names = task(1)
    with pytest.raises(ValueError, match=r"expected 0\.\.5"):
        stage.finish([(pixels, labels + 3, labels)], names)


def test_bf16_stays_near_fp32(second: Model) -> None:
    exact = losses(learner(2, *second), 2, 3)
    mixed = losses(learner(2, *second, replace(SETTINGS, precision="bf16", old_precision="bf16")), 2, 3)
    for a, b in zip(exact, mixed, strict=True):
        assert b["total"] == pytest.approx(a["total"], rel=0.05)


def test_defaults_are_the_method_ours() -> None:
    assert method_settings("ours") == StageSettings()
