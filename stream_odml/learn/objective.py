"""The loss of a stage, from the embeddings of the global batch:

    L = L_M(S) + L_M(N) + old C(S,O) + peer/2 [C(N,S) + C(S,N)] + virtual sum_k C(S,V_k)
        + anchor |g_S - g_O|^2 + wide |g_S - g_O|^2 on wide views + repel R(S, bank)

Student and peer distil each other in both directions and nothing is detached: old and new tasks are equals.
"""

# B global batch   d embedding   S student   O old   N peer   V_k virtual

from __future__ import annotations

from torch import Tensor, nn

from stream_odml.learn.anchor import anchor_loss
from stream_odml.learn.geometry import unit
from stream_odml.learn.relation import relation_distillation
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
    tau = settings.temperature
    student_z = unit(student_Bd)
    losses = {"metric_student": metric["student"](student_z, labels_B)}
    if peer_Bd is not None:
        peer_z = unit(peer_Bd)
        both = relation_distillation(peer_z, student_z, tau) + relation_distillation(student_z, peer_z, tau)
        losses["metric_peer"] = metric["peer"](peer_z, labels_B)
        losses["peer"] = settings.weight_peer / 2 * both
    if old_Bd is None:
        return losses
    if settings.weight_old:
        losses["old"] = settings.weight_old * relation_distillation(student_z, unit(old_Bd), tau)
    if settings.weight_anchor:
        losses["anchor"] = settings.weight_anchor * anchor_loss(student_Bd, old_Bd)
    if wide_pair is not None and len(wide_pair[0]):
        losses["wide"] = settings.weight_wide * anchor_loss(*wide_pair)
    if directions_Cd is not None:
        repelled = repel_loss(student_z, unit(old_Bd), labels_B, directions_Cd)
        losses["repel"] = settings.weight_repel * repelled
    if virtual is not None and len(virtual):
        terms = [relation_distillation(student_z, virtual_z, tau) for virtual_z in virtual(old_Bd)]
        losses["virtual"] = settings.weight_virtual * sum(terms[1:], terms[0])
    return losses
