"""Learning rates that the optimiser really honours, and the schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from stream_odml.learn.optimiser import Adam, ParameterGroup, schedule
from stream_odml.learn.settings import StageSettings
from tests.learn.tiny import SETTINGS, after, batch, learner


def movement(**changes: float) -> dict[str, float]:
    """How far one step moves each part of the student and the peer."""
    stage = learner(1, *after(1), replace(SETTINGS, warmup_steps=0, weight_decay=0.0, **changes))  # type: ignore[arg-type]
    before = {name: p.detach().clone() for name, p in stage.networks.named_parameters()}
    stage.step(*batch(1, 0))
    moved: dict[str, float] = {}
    for name, p in stage.networks.named_parameters():
        part = ".".join(name.split(".")[:2])
        moved[part] = max(moved.get(part, 0.0), float((p.detach() - before[name]).abs().max()))
    return moved


def test_each_part_moves_by_its_own_rate() -> None:
    # Adam's first step moves a weight by the learning rate, whatever its gradient.
    moved = movement(learning_rate=1e-3, head_learning_rate_factor=3.0, peer_learning_rate_factor=0.5)
    assert moved["student.backbone"] == pytest.approx(1e-3, rel=1e-2)
    assert moved["student.head"] == pytest.approx(3e-3, rel=1e-2)
    assert moved["peer.backbone"] == pytest.approx(0.5e-3, rel=1e-2)
    assert moved["peer.head"] == pytest.approx(1.5e-3, rel=1e-2)


def test_a_factor_of_zero_holds_the_head_still() -> None:
    moved = movement(head_learning_rate_factor=0.0)
    assert moved["student.head"] == 0.0
    assert moved["student.backbone"] > 0.0


def test_decay_spares_norms_and_biases() -> None:
    groups = learner(1, *after(1))._optimiser.groups
    for group in groups:
        ranks = {p.ndim > 1 for p in group.params}
        assert ranks == {group.weight_decay > 0}
    assert sum(len(group.params) for group in groups) == 2 * (4 * 3 + 2)


def test_the_schedule_warms_up_and_falls_to_zero() -> None:
    settings = StageSettings(warmup_steps=4)
    shares = [schedule(settings, step, 20) for step in range(20)]
    assert shares[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert schedule(settings, 12, 20) == pytest.approx(0.5)
    assert schedule(settings, 20, 20) == pytest.approx(0.0)
    assert schedule(replace(settings, schedule="constant"), 19, 20) == 1.0
    assert schedule(settings, 0, 1) == 1.0  # a stage shorter than its warm-up


def test_the_peer_s_batches_are_its_only_steps() -> None:
    stage = learner(1, *after(1), replace(SETTINGS, peer_every=2))
    stage.step(*batch(1, 0))
    assert stage.networks.peer is not None
    before = [p.detach().clone() for p in stage.networks.peer.parameters()]
    stage.step(*batch(1, 1))
    after_ = list(stage.networks.peer.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, after_, strict=True))


def test_its_numbers_are_those_of_torch_and_so_is_what_it_goes_on_to_from_a_state() -> None:
    ours, theirs = (torch.nn.Linear(3, 2), torch.nn.Linear(3, 2))
    theirs.load_state_dict(ours.state_dict())
    group = ParameterGroup(list(ours.parameters()), factor=2.0, weight_decay=0.1)
    adam = Adam([group])
    oracle = torch.optim.Adam(theirs.parameters(), lr=0.02, weight_decay=0.1)
    for step in range(4):
        if step == 2:
            kept = adam.state()
            adam = Adam([group])
            adam.load_state(kept)
        adam.zero_grad()
        oracle.zero_grad()
        for model in (ours, theirs):
            model(torch.full((1, 3), step + 1.0)).square().sum().backward()
            if step == 1:
                model.bias.grad = None
        adam.step(0.01)
        oracle.step()
        assert torch.equal(ours.weight, theirs.weight)
        assert torch.equal(ours.bias, theirs.bias)
