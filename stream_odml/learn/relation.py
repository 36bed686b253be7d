"""Relation distillation: two models agree when their Gram matrices rank the batch alike. No label is used."""

# B global batch   d embedding

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def gram(z_Bd: Tensor) -> Tensor:
    """S(Z) = Z Z^T, [B, B]."""
    return z_Bd @ z_Bd.mT


def relation_log_probabilities(z_Bd: Tensor, tau: float) -> Tensor:
    """log P_tau(Z), [B, B] in float64: the log-softmax of the rows of S(Z) / tau.

    At tau = 4 rows are nearly flat and a KL is some 1e-6, below the rounding of a float32 log-softmax: times
    tau^2 lambda that noise would reach the fifth digit of the loss.
    """
    return F.log_softmax(gram(z_Bd).double() / tau, dim=-1)


def divergence(log_p_BB: Tensor, log_q_BB: Tensor, tau: float) -> Tensor:
    """C(A, B) = tau^2 / B * sum_i KL(P_tau(A)_i || P_tau(B)_i), a scalar with gradients to both sides, of
    log-probabilities that several terms share; those of B may be [K,B,B], and are summed over.

    Source: Chen et al., Feature Estimations based Correlation Distillation (TMM 2021).
    """
    return tau**2 / len(log_p_BB) * (log_p_BB.exp() * (log_p_BB - log_q_BB)).sum()
