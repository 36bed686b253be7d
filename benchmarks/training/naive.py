"""The mutual step as one would write it first: three models, each asked in turn at full precision, on every batch."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.training.made import ENDLESS, Shape, made_bank, made_old
from stream_odml.learn.augment import augment
from stream_odml.learn.embedder import build_embedder
from stream_odml.learn.losses import stage_losses
from stream_odml.learn.metric_losses import build_metric_loss
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.virtual import VirtualFeatures

NAIVE: dict[str, object] = {"peer_every": 1, "old_precision": "fp32", "precision": "fp32"}
"""What makes a StageLearner do what this step does, where the two are compared by what they learn."""


class NaiveStep:
    """One loss and one optimiser over S and N; usual memory layout, no inference mode."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.settings = StageSettings(stage_steps=ENDLESS, weight_composites=0.0)
        self.seed = seed
        self.old = made_old(shape, seed).requires_grad_(False)
        self.student = copy.deepcopy(self.old).requires_grad_(True)
        self.student.norms_frozen = True
        self.student.train()
        self.peer = build_embedder(shape.spec, seed).train()
        bank = made_bank(shape.spec.dim, seed)
        self.virtual = VirtualFeatures(bank, self.settings, {}, torch.device("cpu"))
        self.directions = torch.from_numpy(bank.directions) if self.settings.weight_repel else None
        losses = {
            name: build_metric_loss(self.settings, shape.classes, shape.spec.dim, 0)
            for name in ("student", "peer")
        }
        self.metric = nn.ModuleDict(losses)
        parameters = [*self.student.parameters(), *self.peer.parameters()]
        self.optimiser = torch.optim.Adam(parameters, lr=5e-4, weight_decay=5e-4)
        self.done = 0

    def step(self, pixels: Tensor, labels: Tensor) -> float:
        """One step; the loss before it."""
        images = pixels.permute(0, 3, 1, 2).contiguous().float() / 255
        images = augment(images, self.settings, self.seed, self.done, start=0, total=len(images))
        images = images.contiguous()
        student, peer = self.student(images), self.peer(images)
        with torch.no_grad():
            old = self.old(images)
        losses = stage_losses(
            self.settings,
            self.metric,
            labels,
            student,
            peer_Bd=peer,
            old_Bd=old,
            virtual=self.virtual,
            directions_Cd=self.directions,
        )
        loss = torch.stack(list(losses.values())).sum()
        self.optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimiser.step()
        self.done += 1
        return float(loss.detach())


def naive_settings(settings: StageSettings) -> StageSettings:
    """`settings` without any of the savings."""
    return replace(settings, **NAIVE)  # type: ignore[arg-type]
