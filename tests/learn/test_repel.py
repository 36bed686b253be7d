"""The bank's directions as negatives, against loops over points on a circle."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from stream_odml.learn.losses import repel_loss


def on_circle(*degrees: float) -> Tensor:
    angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
    return torch.stack([angle.cos(), angle.sin()], 1)


def test_repel_is_softplus_of_directions_over_positives() -> None:
    z, labels, u = on_circle(0, 10, 90, 120), torch.tensor([0, 0, 1, 1]), on_circle(40, 200)
    values = []
    for i in range(4):
        for p in range(4):
            if i != p and labels[i] == labels[p]:
                crowd = sum(math.exp(float(z[i] @ c) / 0.1) for c in u)
                values.append(math.log(1 + crowd / math.exp(float(z[i] @ z[p]) / 0.1)))
    assert float(repel_loss(z, z, labels, u)) == pytest.approx(sum(values) / len(values))


def test_a_direction_among_a_classes_own_images_is_no_negative_of_it() -> None:
    z, labels = on_circle(0, 10, 90, 120), torch.tensor([0, 0, 1, 1])
    with_twin = repel_loss(z, z, labels, on_circle(6))
    only_others = repel_loss(z[2:], z[2:], labels[2:], on_circle(6)) / 2
    assert float(with_twin) == pytest.approx(float(only_others))


def test_the_gradient_turns_new_images_away() -> None:
    z = on_circle(30, 30).requires_grad_()
    repel_loss(z, on_circle(25, 35), torch.tensor([0, 0]), on_circle(0)).backward()  # type: ignore[no-untyped-call]
    assert z.grad is not None
    onwards = on_circle(120)[0]  # the tangent at 30 degrees, away from 0
    assert float(-z.grad[0] @ onwards) > 0


def test_a_batch_without_positives_costs_nothing() -> None:
    z = on_circle(0, 90)
    assert float(repel_loss(z, z, torch.tensor([0, 1]), on_circle(45))) == 0.0
