"""A metric loss of your own: a module of (unit embeddings [B, d], labels [B]) to a scalar.

Name it in the configuration; the module must be importable where the training workers run:

    learning:
      metric_loss: "own_loss:LiftedLoss"
      metric_loss_args: {margin: 0.8}

Run it to see it fall: python examples/own_loss.py
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, nn


class LiftedLoss(nn.Module):
    """Lifted structure (Song et al., CVPR 2016), its smooth bound, on cosine distances.

    For each positive pair: softplus(logsumexp over negatives of either image (margin - distance) + its distance).
    """

    def __init__(self, margin: float = 1.0) -> None:
        super().__init__()
        self.margin = margin

    def forward(self, z_Bd: Tensor, labels_B: Tensor) -> Tensor:
        """Return the loss; 0 where the batch has no pair to compare."""
        distance_BB = 1 - z_Bd @ z_Bd.T
        same_BB = labels_B[:, None] == labels_B[None, :]
        pairs_BB = same_BB.triu(diagonal=1)
        if not pairs_BB.any() or same_BB.all():
            return z_Bd.sum() * 0.0
        pushed_B = (self.margin - distance_BB).masked_fill(same_BB, -1e9).logsumexp(1)
        both_BB = torch.logaddexp(pushed_B[:, None], pushed_B[None, :])
        return nn.functional.softplus(both_BB + distance_BB)[pairs_BB].mean()


def main(steps: int = 200) -> list[float]:
    """Learn one task of characters by it; print and return the loss, early and late."""
    sys.path.insert(0, str(Path(__file__).parent))
    from itertools import islice

    from plain_torch import tasks_of

    from stream_odml.ingest.glyphs import glyph_categories
    from stream_odml.ingest.sampler import PKSampler
    from stream_odml.learn.bank import ClassBank
    from stream_odml.learn.embedder import build_embedder
    from stream_odml.learn.settings import EmbedderSpec, StageSettings
    from stream_odml.learn.stage import StageLearner

    drawn = [(c.class_name, c.images) for c in islice(glyph_categories(seed=0, images=8), 12)]
    (task,) = tasks_of(drawn, per_task=12, side=16)
    settings = StageSettings(
        metric_loss="own_loss:LiftedLoss",
        metric_loss_args={"margin": 0.8},
        base_steps=steps,
        classes_per_batch=6,
    )
    model = build_embedder(EmbedderSpec(dim=32, image_size=16), seed=0)
    learner = StageLearner(settings, model, ClassBank.empty(32), n_classes=12, version_id="v1", seed=0)
    sampler = PKSampler(task.labels, settings.classes_per_batch, settings.images_per_class, seed=0)
    losses = []
    for step in range(steps):
        rows = sampler.batch(step)
        report = learner.step(torch.from_numpy(task.pixels[rows]), torch.from_numpy(task.labels[rows]))
        losses.append(report.losses["total"])
    few = max(1, steps // 10)
    early, late = sum(losses[:few]) / few, sum(losses[-few:]) / few
    print(f"loss {early:.3f} at first, {late:.3f} at the end")
    return [early, late]


if __name__ == "__main__":
    main()
