"""A trunk is trained through a linear layer that is thrown away; what is kept gives pooled features."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import (
    build_embedder,
    embed,
    embedder_from_bytes,
    embedder_to_bytes,
    with_training_head,
)
from stream_odml.learn.settings import EmbedderSpec
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
    assert np.allclose(linear, z, atol=1e-4), "the layer that is thrown away is all that lies between them"


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


def test_a_later_stage_does_not_move_a_trunk() -> None:
    trunk = build_embedder(TRUNK, seed=1)
    outcome = finish(
        learner(0, trunk, ClassBank.empty(trunk.out_dim), replace(SETTINGS, base_steps=0, stage_steps=0)), 0
    )
    with pytest.raises(ValueError, match="set stage_steps: 0"):
        learner(1, trunk, outcome.bank)
