"""Rivals that carry a stored gallery over to a new model: each is fitted to the images of a task as the model before it
and the new one embed them. The models are those of `l2` or of another trained head, learnt once for all.
"""

# n images of the task   d embedding

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Annotated, Literal

import numpy as np
import torch
from torch import nn

from benchmarks.quality.state import Floats
from stream_odml.learn.drift import AffineMap, DriftMap
from stream_odml.learn.ranges import Count, Positive, Range, check_fields
from stream_odml.zero import unit_rows

Kind = Literal["mean", "ldc", "orthogonal", "low_rank", "residual"]


@dataclass(frozen=True)
class MapRival:
    """How vectors x of one model become vectors y of another.

    `mean`: x plus the mean drift (QDC, Goswami et al. 2025). `ldc`: A x by the recipe of LDC (Gomez-Villa et al., ECCV
    2024): no shift, from a random start, Adam at 1e-3, batches of 128, 20 epochs. The three of Drift-Adapter (Vejendla,
    EMNLP 2025), on unit vectors: `orthogonal`, the rotation of Procrustes; `low_rank`, U Vᵀ x + t; `residual`, x + a
    network of one hidden layer.
    """

    kind: Kind
    side: Literal["gallery", "query"] = "gallery"
    """`gallery`: stored vectors are mapped to the newest model. `query`: they stay, and a query is mapped back to the
    model of each item."""
    epochs: Count = 20
    rate: Positive = 1e-3
    rank: Annotated[int, Range(at_least=1)] = 64
    hidden: Annotated[int, Range(at_least=1)] = 256

    def __post_init__(self) -> None:
        check_fields(self)

    def fit(self, x_nd: Floats, y_nd: Floats, seed: int) -> DriftMap:
        """Fit x -> y."""
        d = x_nd.shape[1]
        if self.kind == "mean":
            return AffineMap(np.eye(d), (y_nd - x_nd).mean(axis=0).astype(np.float64))
        if self.kind == "orthogonal":
            left_dd, _, right_dd = np.linalg.svd(unit_rows(y_nd).T @ unit_rows(x_nd))
            return AffineMap((left_dd @ right_dd).astype(np.float64), np.zeros(d))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            net = self._net(d)
            pair = (x_nd, y_nd) if self.kind == "ldc" else (unit_rows(x_nd), unit_rows(y_nd))
            self._train(net, *(torch.from_numpy(side) for side in pair))
        if self.kind == "residual":
            return NetMap(net)
        # Linear in x: what it gives for zero and for the unit vectors.
        with torch.inference_mode():
            b_d = net(torch.zeros(1, d))[0].double().numpy()
            A_dd = net(torch.eye(d)).double().numpy().T - b_d[:, None]
        return AffineMap(A_dd, b_d)

    def _net(self, d: int) -> nn.Module:
        if self.kind == "ldc":
            return nn.Linear(d, d, bias=False)
        if self.kind == "low_rank":
            return nn.Sequential(nn.Linear(d, min(self.rank, d), bias=False), nn.Linear(min(self.rank, d), d))
        return _Residual(d, self.hidden)

    def _train(self, net: nn.Module, x_nd: torch.Tensor, y_nd: torch.Tensor) -> None:
        optimiser = torch.optim.Adam(net.parameters(), self.rate)
        for _ in range(self.epochs):
            for rows in torch.randperm(len(x_nd)).split(128):  # type: ignore[no-untyped-call]
                optimiser.zero_grad()
                nn.functional.mse_loss(net(x_nd[rows]), y_nd[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()


class _Residual(nn.Module):
    def __init__(self, d: int, hidden: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(d, hidden), nn.Linear(hidden, d)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x_nd: torch.Tensor) -> torch.Tensor:
        moved: torch.Tensor = x_nd + self.outer(nn.functional.gelu(self.inner(x_nd)))
        return moved


@dataclass(frozen=True, eq=False)
class NetMap:
    """A network of unit vectors."""

    net: nn.Module
    kind: str = "network"

    def apply(self, g_nd: Floats) -> Floats:
        with torch.inference_mode():
            moved_nd: Floats = self.net(torch.from_numpy(unit_rows(g_nd))).numpy()
        return moved_nd

    def to_bytes(self) -> bytes:
        """Raise TypeError: it only carries a measured gallery, and no version keeps it."""
        raise TypeError("a network between two models is kept by no version")


MAPS: Mapping[str, MapRival] = MappingProxyType(
    {
        "qdc_l2": MapRival("mean", "query"),
        "mean_l2": MapRival("mean"),
        "ldc_l2": MapRival("ldc"),
        "orthogonal_l2": MapRival("orthogonal"),
        "low_rank_l2": MapRival("low_rank"),
        "residual_l2": MapRival("residual"),
        **{
            f"adapter_{kind}_l2": replace(MapRival(kind), side="query")
            for kind in ("orthogonal", "low_rank", "residual")
        },
    }
)
"""By the name of the table, on the models of `l2`."""
