"""The loss of a stage, term by term, from the embeddings of the global batch:

    L = L_M(S) + L_M(N)                          metric loss of student and peer       metric_losses.py
        + weight_old C(S, O)                     relation distillation, old model      divergence
        + weight_peer / 2 [C(N, S) + C(S, N)]    mutual distillation with the peer     divergence
        + weight_virtual Σ_k C(S, V_k)           the same from virtual features        divergence, virtual.py
        + weight_distill |g_S - g_O|²            feature distillation                  feature_distillation
        + weight_composites |g_S - g_O|²         the same on cut-mix composites        feature_distillation
        + weight_hold |h_S - h_O|²               both, of pooled features              feature_distillation
        + weight_repel R(S, bank)                class directions as negatives         repel_loss

Nothing is detached between student and peer: old and new classes are learnt as equals. Under a discriminant head the
student's linear layer is of this stage alone, and the old model has none: what compares with the old model, or with
virtual features, compares pooled features h, and `weight_hold` takes the place of `weight_distill` and
`weight_composites`. To add a term: a function and its line in `stage_losses` here, and its weight in `StageSettings`.
"""

# B global batch   d embedding   C classes of the bank   S student   O old   N peer   V_k virtual

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from stream_odml.learn.geometry import gram, unit
from stream_odml.learn.metric_losses import pair_masks
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.virtual import VirtualFeatures

OLD_MODEL_TERMS = ("weight_old", "weight_distill", "weight_composites", "weight_hold", "weight_repel")
"""Weights of terms that compare with the old model, which embeds the batch only where one of them is above 0."""
REPEL_TEMPERATURE = 0.1


def stage_losses(
    settings: StageSettings,
    metric: nn.ModuleDict,
    labels_B: Tensor,
    student_Bd: Tensor,
    *,
    peer_Bd: Tensor | None = None,
    old_Bd: Tensor | None = None,
    virtual: VirtualFeatures | None = None,
    directions_Cd: Tensor | None = None,
    composites: tuple[Tensor, Tensor] | None = None,
    features_BD: Tensor | None = None,
) -> dict[str, Tensor]:
    """Return the weighted terms by name; their sum is the loss.

    Embeddings are raw g, None for a network that did not see the batch. `metric`: L_M of "student" and "peer".
    `directions_Cd`: unit directions of the bank's classes, None where they do not repel. `composites`: g of the
    composites under S and O. `features_BD`: h of the student, where `old_Bd` and `composites` are of h as well.
    """
    tau, dtype = settings.temperature, student_Bd.dtype
    student_z = unit(student_Bd)
    losses = {"metric_student": metric["student"](student_z, labels_B)}
    relates = peer_Bd is not None or settings.weight_old or virtual
    # Every relation has the student on one side: its log-probabilities are computed once.
    log_s = relation_log_probabilities(student_z, tau) if relates else None
    if peer_Bd is not None and log_s is not None:
        peer_z = unit(peer_Bd)
        log_n = relation_log_probabilities(peer_z, tau)
        both = divergence(log_n, log_s, tau) + divergence(log_s, log_n, tau)
        losses["metric_peer"] = metric["peer"](peer_z, labels_B)
        losses["peer"] = settings.weight_peer / 2 * both.to(dtype)
    if old_Bd is None:
        return losses
    if features_BD is not None and log_s is not None:
        log_s = relation_log_probabilities(unit(features_BD), tau)
    if settings.weight_old and log_s is not None:
        log_o = relation_log_probabilities(unit(old_Bd), tau)
        losses["old"] = settings.weight_old * divergence(log_s, log_o, tau).to(dtype)
    losses |= _held_to_old(settings, student_Bd if features_BD is None else features_BD, old_Bd, composites,
                           of_features=features_BD is not None)  # fmt: skip
    if directions_Cd is not None:
        repelled = repel_loss(student_z, unit(old_Bd), labels_B, directions_Cd)
        losses["repel"] = settings.weight_repel * repelled
    if virtual and log_s is not None:
        log_v = relation_log_probabilities(torch.stack(virtual(old_Bd)), tau)
        losses["virtual"] = settings.weight_virtual * divergence(log_s, log_v, tau).to(dtype)
    return losses


def _held_to_old(
    settings: StageSettings,
    student_Bd: Tensor,
    old_Bd: Tensor,
    composites: tuple[Tensor, Tensor] | None,
    *,
    of_features: bool,
) -> dict[str, Tensor]:
    """Return the weighted terms of feature distillation, on the batch and on its composites."""
    name = "hold" if of_features else "distill"
    on_batch = settings.weight_hold if of_features else settings.weight_distill
    on_composites = settings.weight_hold if of_features else settings.weight_composites
    terms = {name: on_batch * feature_distillation(student_Bd, old_Bd)} if on_batch else {}
    if composites is not None and len(composites[0]):
        terms["composites"] = on_composites * feature_distillation(*composites)
    return terms


def relation_log_probabilities(z_Bd: Tensor, tau: float) -> Tensor:
    """Return log P_tau(Z), [B, B] in float64: the log-softmax of the rows of Z Zᵀ / tau.

    At tau = 4 rows are nearly flat and a KL divergence is about 1e-6, below the rounding of a float32 log-softmax:
    times tau² lambda that noise would reach the fifth digit of the loss.
    """
    return F.log_softmax(gram(z_Bd).double() / tau, dim=-1)


def divergence(log_p_BB: Tensor, log_q_BB: Tensor, tau: float) -> Tensor:
    """Return C(A, B) = tau² / B Σ_i KL(P_tau(A)_i || P_tau(B)_i) from the log-probabilities of A and B.

    Two models agree when they rank the batch alike; no label is used. Gradients go to both sides. `log_q_BB` may be
    [K, B, B]: the result is then the sum over K models. Source: Chen et al., Feature Estimations based Correlation
    Distillation (TMM 2021).
    """
    return tau**2 / len(log_p_BB) * (log_p_BB.exp() * (log_p_BB - log_q_BB)).sum()


def feature_distillation(student_Bd: Tensor, old_Bd: Tensor) -> Tensor:
    """Return the batch mean of |g_S - g_O|² / mean |g_O|²: relative, so one weight suits any embedding scale.

    Relation distillation does not see a rotation of the space, which a stored gallery would not survive: this term
    keeps the drift small enough to be mapped.
    """
    scale = old_Bd.detach().square().sum(dim=1).mean().clamp_min(1e-12)
    return (student_Bd - old_Bd.detach()).square().sum(dim=1).mean() / scale


def repel_loss(z_Bd: Tensor, old_z_Bd: Tensor, labels_B: Tensor, u_Cd: Tensor) -> Tensor:
    """Return the mean over positive pairs of softplus(logsumexp_c(z_i . u_c / T) - z_i . z_p / T), T = 0.1.

    Supervised contrast in which the bank's directions u_c are the only negatives: new images keep away from old
    classes without their images. Unit rows; gradients to z alone. A class that is learnt again would be pushed off
    itself, so a direction that the old model finds nearer to the mean of a class's images in this batch than their
    own spread is no negative of that class.
    """
    positive, _ = pair_masks(labels_B)
    logits_BC = z_Bd @ u_Cd.T / REPEL_TEMPERATURE
    logits_BC = logits_BC.masked_fill(_same_class(old_z_Bd, labels_B, u_Cd), -1e9)
    pairs_BB = F.softplus(logits_BC.logsumexp(1, keepdim=True) - z_Bd @ z_Bd.T / REPEL_TEMPERATURE)
    return (pairs_BB * positive).sum() / positive.sum().clamp_min(1)


@torch.no_grad()
def _same_class(old_z_Bd: Tensor, labels_B: Tensor, u_Cd: Tensor) -> Tensor:
    """Return, [B, C], whether a direction is as near to the class mean of row i as the class's own images are."""
    same_BB = (labels_B[:, None] == labels_B).to(old_z_Bd.dtype)
    mean_Bd = F.normalize(same_BB @ old_z_Bd, dim=1)
    own_B = (same_BB * (mean_Bd @ old_z_Bd.T)).sum(1) / same_BB.sum(1)
    return mean_Bd @ u_Cd.T >= own_B[:, None]
