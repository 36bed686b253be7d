"""Relation and feature distillation, and safe normalisation, against loops."""

from __future__ import annotations

import math

import pytest
import torch

from stream_odml.learn.geometry import unit
from stream_odml.learn.losses import divergence, feature_distillation, relation_log_probabilities
from tests.learn.circle import cos, on_circle

A, B = (0.0, 30.0, 100.0, 250.0), (5.0, 60.0, 90.0, 200.0)


def distilled(a_Bd: torch.Tensor, b_Bd: torch.Tensor, tau: float) -> torch.Tensor:
    """C(A, B), as a stage puts it together."""
    log_p, log_q = (relation_log_probabilities(z_Bd, tau) for z_Bd in (a_Bd, b_Bd))
    return divergence(log_p, log_q, tau)


def softmax_row(angles: tuple[float, ...], i: int, tau: float) -> list[float]:
    exponentials = [math.exp(cos(angles[i], other) / tau) for other in angles]
    return [e / sum(exponentials) for e in exponentials]


@pytest.mark.parametrize("tau", [0.2, 1.0, 4.0])
def test_relation_distillation_equals_the_loops(tau: float) -> None:
    expected = 0.0
    for i in range(4):
        p, q = softmax_row(A, i, tau), softmax_row(B, i, tau)
        expected += sum(p[j] * math.log(p[j] / q[j]) for j in range(4))
    expected *= tau**2 / 4
    assert distilled(on_circle(*A), on_circle(*B), tau).item() == pytest.approx(expected, rel=1e-9)


def test_a_rotation_is_free_for_the_gram_matrix() -> None:
    turned = tuple(angle + 77 for angle in A)
    assert distilled(on_circle(*A), on_circle(*turned), 4.0).item() == pytest.approx(0, abs=1e-12)


def test_gradients_reach_both_sides() -> None:
    a, b = on_circle(*A).requires_grad_(), on_circle(*B).requires_grad_()
    for gradient in torch.autograd.grad(distilled(a, b, 1.0), (a, b)):
        assert gradient.abs().max() > 1e-4


def test_feature_distillation_is_the_squared_distance_relative_to_the_old_length() -> None:
    old, new = 3 * on_circle(0, 90), 3 * on_circle(0, 0)
    # Distances 0 and 3 sqrt(2), lengths 3: (0 + 18) / 2 / 9.
    assert feature_distillation(new, old).item() == pytest.approx(1.0)


def test_a_zero_vector_stays_zero_and_passes_no_gradient() -> None:
    g = torch.tensor([[3.0, 4.0], [0.0, 0.0]], requires_grad=True)
    z = unit(g)
    z.sum().backward()  # type: ignore[no-untyped-call]
    assert torch.allclose(z.detach(), torch.tensor([[0.6, 0.8], [0.0, 0.0]]))
    assert g.grad is not None
    assert torch.isfinite(g.grad).all()
    assert not g.grad[1].any()


def test_single_precision_keeps_the_digits_of_a_tiny_divergence() -> None:
    near = tuple(angle + 0.1 * i for i, angle in enumerate(A))
    exact = distilled(on_circle(*A), on_circle(*near), 4.0).item()
    single = distilled(on_circle(*A).float(), on_circle(*near).float(), 4.0).item()
    assert 0 < exact < 1e-5
    assert single == pytest.approx(exact, rel=1e-3)


def test_several_models_at_once_are_the_sum_of_each() -> None:
    log_a, *others = (relation_log_probabilities(on_circle(*angles), 4.0) for angles in (A, B, A[::-1]))
    both = divergence(log_a, torch.stack(others), 4.0)
    assert both.item() == pytest.approx(sum(divergence(log_a, other, 4.0).item() for other in others))
