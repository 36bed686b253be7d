"""Adam with a learning rate for each part, and a schedule that is a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adam import adam

from stream_odml.learn.networks import Networks
from stream_odml.learn.settings import StageSettings

Named = Iterable[tuple[str, nn.Parameter]]
_ADAM: dict[str, Any] = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "amsgrad": False, "maximize": False}


@dataclass
class ParameterGroup:
    """Parameters that share a learning rate (`factor` times the scheduled one) and a weight decay."""

    params: list[nn.Parameter]
    factor: float
    weight_decay: float


class Adam:
    """Adam (Kingma and Ba, 2015) by torch's own function of it, with the numbers of torch.optim.Adam. Not that class:
    its first call loads torch's compiler, three seconds in every process that learns."""

    def __init__(self, groups: list[ParameterGroup]) -> None:
        self.groups = groups
        self._parameters = [parameter for group in groups for parameter in group.params]
        self._moments: dict[nn.Parameter, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        """Drop every gradient."""
        for parameter in self._parameters:
            parameter.grad = None

    def step(self, rate: float) -> None:
        """Update every parameter that has a gradient, at this learning rate times the factor of its group."""
        for group in self.groups:
            learnt = [parameter for parameter in group.params if parameter.grad is not None]
            moments = [self._moments.get(parameter) or self._begin(parameter) for parameter in learnt]
            with torch.no_grad():
                adam(
                    list[Tensor](learnt),
                    [parameter.grad for parameter in learnt if parameter.grad is not None],
                    [moment["exp_avg"] for moment in moments],
                    [moment["exp_avg_sq"] for moment in moments],
                    [],
                    [moment["step"] for moment in moments],
                    lr=rate * group.factor,
                    weight_decay=group.weight_decay,
                    **_ADAM,
                )

    def state(self) -> dict[str, Tensor]:
        """Return moments and step counts as flat tensors, `<parameter>.<name>`, parameters in group order."""
        numbered = enumerate(self._parameters)
        return {f"{i}.{name}": value for i, p in numbered for name, value in self._moments.get(p, {}).items()}

    def load_state(self, flat: dict[str, Tensor]) -> None:
        """Load the tensors of `state`. Raises IndexError or ValueError for a state of other parameters."""
        self._moments = {}
        for key, value in flat.items():
            i, name = key.split(".", 1)
            parameter = self._parameters[int(i)]
            device = "cpu" if name == "step" else parameter.device
            # Cloned: Adam updates in place, and the caller's tensors stay the caller's.
            self._moments.setdefault(parameter, {})[name] = value.clone().to(device)

    def _begin(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        zeros = [torch.zeros_like(parameter, memory_format=torch.preserve_format) for _ in range(2)]
        moments = {"step": torch.tensor(0.0), "exp_avg": zeros[0].detach(), "exp_avg_sq": zeros[1].detach()}
        return self._moments.setdefault(parameter, moments)


def build_optimiser(networks: Networks, losses: nn.ModuleDict, settings: StageSettings) -> Adam:
    """Build Adam with a group for each part's weights and for its norms and biases; proxies use the head's factor."""
    groups: list[ParameterGroup] = []
    head = settings.head_learning_rate_factor
    for network, factor in ((networks.student, 1.0), (networks.peer, settings.peer_learning_rate_factor)):
        if network is not None:
            groups += _groups(network.backbone.named_parameters(), factor, settings)
            groups += _groups(network.head.named_parameters(), factor * head, settings)
    groups += _groups(losses.named_parameters(), head, settings)
    return Adam([group for group in groups if group.params])


def schedule(settings: StageSettings, step: int, total: int) -> float:
    """Return the learning rate's share at a step in 0..total-1: linear warm-up, constant or half a cosine to zero."""
    warmup = min(settings.warmup_steps, total // 2)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    if settings.schedule == "constant":
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(total - warmup, 1)))


def _groups(named: Named, factor: float, settings: StageSettings) -> list[ParameterGroup]:
    """Return parameter groups: weights with decay, norms and biases without."""
    parameters = [p for _, p in named]
    weights = [p for p in parameters if p.ndim > 1]
    others = [p for p in parameters if p.ndim <= 1]
    return [ParameterGroup(weights, factor, settings.weight_decay), ParameterGroup(others, factor, 0.0)]
