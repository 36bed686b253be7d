"""The ranks of one stage. Every rank computes the loss of the global batch from the same gathered embeddings."""

# b rows of this rank   B rows of all ranks   d embedding

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class World:
    """Rank, number of ranks and the device of this one. World() is a world of one rank on the CPU."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    def current(cls, device: str | torch.device = "cpu") -> World:
        """Return the world of the initialised default process group, or a world of one where there is none."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size(), torch.device(device))
        return cls(device=torch.device(device))

    def counts(self, b: int) -> list[int]:
        """Return the row count of every rank."""
        if self.size == 1:
            return [b]
        mine = torch.tensor([b], dtype=torch.int64, device=self.device)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine)
        return [int(n) for n in every]

    def gather(self, x_bd: Tensor, counts: list[int] | None = None) -> Tensor:
        """Gather rows of all ranks in rank order, [b, ...] -> [B, ...]; ranks may bring different b.

        The gradient is exact for a loss that every rank computes alike from the gathered rows, under
        DistributedDataParallel: that averages over ranks, so each rank's own rows get `size` times their gradient.
        """
        if self.size == 1:
            return x_bd
        counts = self.counts(len(x_bd)) if counts is None else counts
        gathered: Tensor = _Gather.apply(x_bd, counts, self.rank)  # type: ignore[no-untyped-call]
        return gathered

    def sum(self, x: Tensor) -> Tensor:
        """Return the sum of x over ranks, without gradient."""
        if self.size == 1:
            return x
        total = x.detach().clone().to(self.device)
        dist.all_reduce(total)
        return total.to(x.device)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_bd: Tensor, counts: list[int], rank: int) -> Tensor:
        ctx.counts, ctx.rank = counts, rank
        padded = x_bd.new_zeros((max(counts), *x_bd.shape[1:]))
        padded[: len(x_bd)] = x_bd
        every = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(every, padded)
        return torch.cat([rows[:n] for rows, n in zip(every, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        start = sum(ctx.counts[: ctx.rank])
        mine = grads[0][start : start + ctx.counts[ctx.rank]]
        return mine * len(ctx.counts), None, None
