"""The anchor: the student's raw embeddings stay near the old model's, which keeps the drift small and
mappable."""

from __future__ import annotations

from torch import Tensor


def anchor_loss(student_Bd: Tensor, old_Bd: Tensor) -> Tensor:
    """Mean over the batch of |g_S - g_O|^2 / mean|g_O|^2: relative, so one weight suits any embedding
    scale."""
    scale = old_Bd.detach().square().sum(dim=1).mean().clamp_min(1e-12)
    return (student_Bd - old_Bd.detach()).square().sum(dim=1).mean() / scale
