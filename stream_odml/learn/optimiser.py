"""Adam with a learning rate for each part, and a schedule that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from stream_odml.learn.networks import Networks
from stream_odml.learn.settings import StageSettings

Named = Iterable[tuple[str, nn.Parameter]]


def build_optimiser(
    networks: Networks, losses: nn.ModuleDict, settings: StageSettings, rate: float
) -> torch.optim.Adam:
    """Build Adam with groups of `factor` (times the scheduled rate) and `weight_decay`; proxies use the head's."""
    groups: list[dict[str, object]] = []
    head = settings.head_learning_rate_factor
    for network, factor in ((networks.student, 1.0), (networks.peer, settings.peer_learning_rate_factor)):
        if network is not None:
            groups += _groups(network.backbone.named_parameters(), factor, settings)
            groups += _groups(network.head.named_parameters(), factor * head, settings)
    groups += _groups(losses.named_parameters(), head, settings)
    return torch.optim.Adam([group for group in groups if group["params"]], lr=rate)


def set_rate(
    optimiser: torch.optim.Adam, settings: StageSettings, rate: float, step: int, total: int
) -> None:
    """Set every group's learning rate at this step."""
    scheduled = rate * schedule(settings, step, total)
    for group in optimiser.param_groups:
        group["lr"] = scheduled * group["factor"]


def schedule(settings: StageSettings, step: int, total: int) -> float:
    """Return the share of the learning rate at a step in 0..total-1: linear warm-up, then constant or half a
    cosine to zero."""
    warmup = min(settings.warmup_steps, total // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def optimiser_state(optimiser: torch.optim.Adam) -> dict[str, Tensor]:
    """Return Adam's moments and step counts as flat tensors, `<parameter>.<name>`, parameters in group order."""
    state = optimiser.state_dict()["state"]
    return {f"{i}.{name}": value for i, values in state.items() for name, value in values.items()}


def load_optimiser_state(optimiser: torch.optim.Adam, flat: dict[str, Tensor]) -> None:
    """Load the tensors of `optimiser_state`."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in flat.items():
        i, name = key.split(".", 1)
        # Cloned: Adam updates in place, and the caller's tensors stay the caller's.
        state.setdefault(int(i), {})[name] = value.clone()
    optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def _groups(named: Named, factor: float, settings: StageSettings) -> list[dict[str, object]]:
    """Return parameter groups: weights with decay, norms and biases without."""
    parameters = [p for _, p in named]
    weights = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [
        {"params": weights, "factor": factor, "weight_decay": settings.weight_decay},
        {"params": others, "factor": factor, "weight_decay": 0.0},
    ]
