"""The networks of a stage: student and peer, alone or across ranks."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from stream_odml.learn.backbone import frozen_norms
from stream_odml.learn.embedder import Embedder, build_embedder
from stream_odml.learn.settings import Precision, StageSettings
from stream_odml.learn.world import World

# torch 2.13 renamed it; the old name warns there.
_SYNC_BUFFERS = next(
    name
    for name in ("forward_sync_buffers", "broadcast_buffers")
    if name in inspect.signature(DistributedDataParallel).parameters
)


class StudentAndPeer(nn.Module):
    """Images [B,3,H,W] -> (g_S [B,d], g_N [n,d] of the first n or None where the peer is not asked)."""

    def __init__(self, student: nn.Module, peer: nn.Module | None, precision: Precision) -> None:
        super().__init__()
        self.student, self.peer, self.precision = student, peer, precision

    def forward(self, images_B3HW: Tensor, n_peer: int) -> tuple[Tensor, Tensor | None]:
        with torch.autocast(images_B3HW.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            student_Bd = self.student(images_B3HW)
            peer_nd = self.peer(images_B3HW[:n_peer]) if n_peer and self.peer is not None else None
        return student_Bd, peer_nd


class Networks(StudentAndPeer):
    """The student and peer themselves, as built and as stored."""

    student: Embedder
    peer: Embedder | None


def build_networks(
    old: Embedder, settings: StageSettings, *, base: bool, seed: int, world: World
) -> Networks:
    """Build the student, a copy of the old model, and the peer, from pretrained weights or the seeded initialisation.

    The student's batch norms are frozen, except in the base stage of a model that starts from nothing; the
    peer's are frozen when it starts pretrained.
    """
    student = copy.deepcopy(old)
    student.norms_frozen = not base or old.spec.starts_pretrained
    peer = None if base or settings.weight_peer == 0 else build_embedder(old.spec, seed)
    networks = Networks(student, peer, settings.precision).to(world.device)
    channels_last(networks)
    networks.requires_grad_(True)
    networks.train()
    return networks


def freeze(embedder: Embedder, device: torch.device) -> Embedder:
    """Return a copy in evaluation mode without gradients."""
    frozen = copy.deepcopy(embedder).to(device)
    channels_last(frozen)
    frozen.norms_frozen = True
    frozen.eval().requires_grad_(False)
    return frozen


def across_ranks(networks: Networks, world: World) -> nn.Module:
    """Return the networks under DistributedDataParallel where there are several ranks. Each under one of its own: on a
    batch without the peer its gradients are then neither awaited nor exchanged."""
    if world.size == 1:
        return networks
    peer = None if networks.peer is None else _synchronised(networks.peer, world)
    return StudentAndPeer(_synchronised(networks.student, world), peer, networks.precision)


def _synchronised(network: Embedder, world: World) -> nn.Module:
    foreign = ":" in network.spec.backbone  # such models often have parameters that no output uses
    buffers: dict[str, Any] = {_SYNC_BUFFERS: any(norm.training for norm in frozen_norms(network))}
    return DistributedDataParallel(
        network,
        device_ids=[world.device] if world.device.type == "cuda" else None,
        **buffers,
        find_unused_parameters=foreign,
    )


def channels_last(module: nn.Module) -> None:
    """Lay convolution weights channels-last in memory: faster on CPUs and on tensor cores, the same values."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
