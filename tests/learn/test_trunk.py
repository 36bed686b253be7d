"""A trunk is trained through a linear layer, which goes with the head; what is kept gives pooled features."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import AffineMap
from stream_odml.learn.embedder import (
    Embedder,
    as_images,
    build_embedder,
    embed,
    embedder_from_bytes,
    embedder_to_bytes,
    with_training_head,
)
from stream_odml.learn.losses import stage_losses
from stream_odml.learn.metric_losses import build_metric_loss
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.learn.stage import StageLearner
from stream_odml.learn.world import World
from tests.learn.tiny import SETTINGS, SPEC, batch, finish, learner, task

TRUNK = replace(SPEC, head="discriminant")


def test_a_base_stage_trains_the_backbone_as_with_a_linear_head_and_keeps_it_alone() -> None:
    trunk = build_embedder(TRUNK, seed=3)
    stages = [
        learner(0, trunk, ClassBank.empty(trunk.out_dim)),
        learner(0, with_training_head(trunk, 0), ClassBank.empty(SPEC.dim), replace(SETTINGS, whitening=0.0)),
    ]
    assert stages[0].seed == 0, "of which the layer is drawn"
    for stage in stages:
        for step in range(stage.total_steps):
            stage.step(*batch(0, step))
    kept, whole = (finish(stage, 0) for stage in stages)
    assert kept.student.spec == TRUNK
    for name, weight in kept.student.backbone.state_dict().items():
        assert torch.equal(weight, whole.student.backbone.state_dict()[name]), name
    pixels, _, _ = task(0)
    h = embed(kept.student, pixels[kept.indices])
    assert h.shape[1] == kept.student.out_dim != SPEC.dim
    assert np.allclose(kept.embeddings, h, atol=1e-5)
    z = embed(whole.student, pixels[kept.indices])
    head = whole.student.head
    assert isinstance(head, torch.nn.Linear)
    linear = h @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    assert np.allclose(linear, z, atol=1e-4), "the layer is all that lies between them"
    assert kept.layer_lD is not None
    assert np.array_equal(kept.layer_lD, head.weight.detach().double().numpy())
    assert whole.layer_lD is None, "it has its layer"


def test_a_trunk_is_stored_and_read() -> None:
    trunk = build_embedder(TRUNK, seed=1).eval()
    again = embedder_from_bytes(embedder_to_bytes(trunk))
    pixels, _, _ = task(0)
    assert again.spec == TRUNK
    assert again.out_dim == trunk.out_dim
    assert np.array_equal(embed(again, pixels), embed(trunk, pixels))


def test_no_step_leaves_the_trunk_as_it_is_and_embeds_the_task() -> None:
    trunk = build_embedder(TRUNK, seed=1)
    settings = replace(SETTINGS, base_steps=0, stage_steps=0)
    outcome = finish(learner(0, trunk, ClassBank.empty(trunk.out_dim), settings), 0)
    pixels, _, _ = task(0)
    assert np.allclose(outcome.embeddings, embed(trunk, pixels[outcome.indices]), atol=1e-5)


def test_a_lift_without_a_discriminant_head_is_refused() -> None:
    with pytest.raises(ValueError, match="only `head: discriminant` takes them"):
        EmbedderSpec(lift=64)


def base() -> Embedder:
    """The trunk after task 0."""
    trunk = build_embedder(TRUNK, seed=1)
    stage = learner(0, trunk, ClassBank.empty(trunk.out_dim))
    for step in range(stage.total_steps):
        stage.step(*batch(0, step))
    return finish(stage, 0).student


def later(old: Embedder, **changes: Any) -> StageLearner:
    """A stage of task 1 that moves the trunk, with one trunk older than its parent's."""
    settings = replace(SETTINGS, **changes)
    older = {"v0": AffineMap(np.eye(old.out_dim) * 0.9, np.zeros(old.out_dim))}
    return StageLearner(
        settings, old, ClassBank.empty(old.out_dim), n_classes=6, version_id="v2", seed=1, world=World(),
        backward_maps=older, moves_trunk=True,
    )  # fmt: skip


def test_a_later_stage_holds_features_and_distils_from_old_peer_and_virtual_features() -> None:
    old = base()
    stage = later(old, peer_every=1)
    images = as_images(batch(1, 0)[0])
    before = old(images)
    report = stage.step(*batch(1, 0))
    assert {"metric_student", "metric_peer", "peer", "old", "hold", "composites", "virtual"} <= set(
        report.losses
    )
    assert report.losses["hold"] == pytest.approx(0, abs=1e-9), "the student begins as the old trunk"
    for step in range(1, stage.total_steps):
        stage.step(*batch(1, step))
    outcome = finish(stage, 1)
    assert outcome.student.spec == TRUNK
    after = outcome.student(images)
    assert not torch.equal(after, before)
    assert isinstance(outcome.forward, AffineMap)
    assert outcome.drift["forward_error"] > 0


def test_the_hold_is_the_relative_square_distance_of_features() -> None:
    random = torch.Generator().manual_seed(0)
    g, h, o = (torch.randn(6, n, generator=random) for n in (3, 5, 5))
    mixed = torch.randn(4, 5, generator=random), torch.randn(4, 5, generator=random)
    settings = replace(SETTINGS, weight_hold=20.0, weight_old=0.0, weight_distill=7.0)
    metric = torch.nn.ModuleDict({"student": build_metric_loss(settings, 3, 3, 0)})
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    found = stage_losses(settings, metric, labels, g, old_Bd=o, composites=mixed, features_BD=h)
    for name, (a, b) in {"hold": (h, o), "composites": mixed}.items():
        apart = np.mean([sum((a[i, j] - b[i, j]) ** 2 for j in range(5)) for i in range(len(a))])
        length = np.mean([sum(b[i, j] ** 2 for j in range(5)) for i in range(len(b))])
        assert float(found[name]) == pytest.approx(20 * apart / length, rel=1e-5)
    assert "distill" not in found


def test_features_held_harder_move_less() -> None:
    old, moved = base(), []
    images = as_images(task(1)[0])
    for weight in (0.0, 1000.0):
        stage = later(old, weight_hold=weight, learning_rate=3e-3, stage_steps=12, old_share=0.0)
        for step in range(stage.total_steps):
            stage.step(*batch(1, step))
        moved.append(float((finish(stage, 1).student(images) - old(images)).square().mean()))
    assert moved[1] < moved[0] / 3


def test_a_later_stage_resumes_to_the_same_bits() -> None:
    old = base()
    whole, first = later(old), later(old)
    for step in range(whole.total_steps):
        whole.step(*batch(1, step))
    for step in range(3):
        first.step(*batch(1, step))
    second = later(old)
    second.load_state_dict(first.state_dict())
    for step in range(3, second.total_steps):
        second.step(*batch(1, step))
    ends = [finish(stage, 1) for stage in (whole, second)]
    assert embedder_to_bytes(ends[0].student) == embedder_to_bytes(ends[1].student)
    assert ends[0].forward.to_bytes() == ends[1].forward.to_bytes()


def test_only_a_trunk_is_moved() -> None:
    whole = with_training_head(build_embedder(TRUNK, seed=1), 0)
    with pytest.raises(ValueError, match="only a discriminant head has a trunk"):
        StageLearner(
            SETTINGS, whole, ClassBank.empty(SPEC.dim), n_classes=6, version_id="v", seed=0, world=World(),
            moves_trunk=True,
        )  # fmt: skip
