"""The loss of a stage, from the embeddings of the global batch:

    L = L_M(S) + L_M(N) + old C(S,O) + peer/2 [C(N,S) + C(S,N)] + virtual sum_k C(S,V_k)
        + anchor |g_S - g_O|^2 + wide |g_S - g_O|^2 on wide views + repel R(S, bank)

Student and peer distil each other in both directions and nothing is detached: old and new tasks are equals.
"""

# B global batch   d embedding   S student   O old   N peer   V_k virtual

from __future__ import annotations

import torch
from torch import Tensor, nn

from stream_odml.learn.anchor import anchor_loss
from stream_odml.learn.geometry import unit
from stream_odml.learn.relation import divergence, relation_log_probabilities
from stream_odml.learn.repel import repel_loss
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.virtual import VirtualFeatures


def stage_losses(
    settings: StageSettings,
    metric: nn.ModuleDict,
    virtual: VirtualFeatures | None,
    labels_B: Tensor,
    student_Bd: Tensor,
    peer_Bd: Tensor | None,
    old_Bd: Tensor | None,
    directions_Cd: Tensor | None = None,
    wide_pair: tuple[Tensor, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Weighted terms by name; their sum is the loss. Embeddings are raw g; a network not asked is None.
    `directions_Cd`: the bank's, or None where they do not repel. `wide_pair`: of wide views, under S and O."""
    tau, dtype = settings.temperature, student_Bd.dtype
    student_z = unit(student_Bd)
    losses = {"metric_student": metric["student"](student_z, labels_B)}
    relates = peer_Bd is not None or settings.weight_old or (virtual is not None and len(virtual))
    # Every relation has the student on one side: its log-probabilities are worked out once.
    log_s = relation_log_probabilities(student_z, tau) if relates else None
    if peer_Bd is not None and log_s is not None:
        peer_z = unit(peer_Bd)
        log_n = relation_log_probabilities(peer_z, tau)
        both = divergence(log_n, log_s, tau) + divergence(log_s, log_n, tau)
        losses["metric_peer"] = metric["peer"](peer_z, labels_B)
        losses["peer"] = settings.weight_peer / 2 * both.to(dtype)
    if old_Bd is None:
        return losses
    if settings.weight_old and log_s is not None:
        log_o = relation_log_probabilities(unit(old_Bd), tau)
        losses["old"] = settings.weight_old * divergence(log_s, log_o, tau).to(dtype)
    if settings.weight_anchor:
        losses["anchor"] = settings.weight_anchor * anchor_loss(student_Bd, old_Bd)
    if wide_pair is not None and len(wide_pair[0]):
        losses["wide"] = settings.weight_wide * anchor_loss(*wide_pair)
    if directions_Cd is not None:
        repelled = repel_loss(student_z, unit(old_Bd), labels_B, directions_Cd)
        losses["repel"] = settings.weight_repel * repelled
    if virtual is not None and len(virtual) and log_s is not None:
        log_v = relation_log_probabilities(torch.stack(virtual(old_Bd)), tau)
        losses["virtual"] = settings.weight_virtual * divergence(log_s, log_v, tau).to(dtype)
    return losses
