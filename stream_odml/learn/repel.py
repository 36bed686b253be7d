"""Old classes as negatives, without their images: new images keep away from the bank's moved class directions."""

# B global batch   C classes of the bank   d embedding

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from stream_odml.learn.metric_losses import pair_masks


def repel_loss(
    z_Bd: Tensor, old_z_Bd: Tensor, labels_B: Tensor, u_Cd: Tensor, temperature: float = 0.1
) -> Tensor:
    """Mean over positive pairs of softplus(logsumexp_c(z_i . u_c / T) - s_ip / T): supervised contrast in which
    the bank's directions are the only negatives. Unit rows; gradients to z alone.

    A class that comes again would be pushed off itself: a direction that the old model finds nearer to the
    mean of a class's images in this batch than their own spread is no negative of that class.
    """
    positive, _ = pair_masks(labels_B)
    logits_BC = z_Bd @ u_Cd.T / temperature
    logits_BC = logits_BC.masked_fill(_same_class(old_z_Bd, labels_B, u_Cd), -1e9)
    pairs_BB = F.softplus(logits_BC.logsumexp(1, keepdim=True) - z_Bd @ z_Bd.T / temperature)
    return (pairs_BB * positive).sum() / positive.sum().clamp_min(1)


@torch.no_grad()
def _same_class(old_z_Bd: Tensor, labels_B: Tensor, u_Cd: Tensor) -> Tensor:
    """[B, C]: whether a direction is as near to the class mean of row i as the class's own images are."""
    same_BB = (labels_B[:, None] == labels_B).to(old_z_Bd.dtype)
    mean_Bd = F.normalize(same_BB @ old_z_Bd, dim=1)
    own_B = (same_BB * (mean_Bd @ old_z_Bd.T)).sum(1) / same_BB.sum(1)
    return mean_Bd @ u_Cd.T >= own_B[:, None]
