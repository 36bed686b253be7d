"""Two ranks with a core each against one rank with a core, on the same global batches: time and loss."""

from __future__ import annotations

import os
import time
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn

from benchmarks.common import Report
from benchmarks.training.made import SHAPES, Shape, made_batch, made_learner
from stream_odml.cluster.runtime import free_port
from stream_odml.learn.memory import keep_freed_memory
from stream_odml.learn.world import World

RANKS, STEPS = 2, 5
BATCHES = 8
EQUAL_STEPS = 20
"""Over so many steps the losses have to be equal; later the last bits of two sums have grown into another course, as
far as `reordered` does: the same one rank that asks its networks for two halves of the batch, one after the other."""


def measure_ranks(report: Report, seed: int) -> None:
    """Efficiency t1 / (2 t2), the median of paired rounds, and the largest relative difference of the losses.

    The ceiling is that of two processes which each learn half a batch for themselves: what the two cores lose by
    sharing memory and cache, and by everything that does not shrink with the batch, before a byte is exchanged.
    """
    rounds = 3 if report.quick else 25
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    address = f"tcp://127.0.0.1:{free_port()}"
    workers = [
        context.Process(target=_rank, args=(rank, address, seed, rounds, theirs if rank == 0 else None))
        for rank in range(RANKS)
    ]
    for worker in workers:
        worker.start()
    try:
        seen: dict[str, Any] = ours.recv()
    finally:
        for worker in workers:
            worker.join()
    one, two, half = (np.array(seen[f"{name}_s"]) for name in ("one", "two", "half"))
    apart, reordered = (_apart(seen["one_loss"], seen[f"{who}_loss"]) for who in ("two", "reordered"))
    report.row(part="ranks", **seen, relative=apart, relative_reordered=reordered)
    report.figure("ddp2_efficiency", float(np.median(one / (RANKS * two))))
    report.figure("ddp2_ceiling_without_exchange", float(np.median(one / (RANKS * half))))
    report.figure("ddp_loss_relative_difference", max(apart[:EQUAL_STEPS]))
    report.figure("reordered_loss_relative_difference", max(reordered[:EQUAL_STEPS]))
    # Two courses that parted: which is farther off at one step is chance, how far they are over many is not.
    late = slice(EQUAL_STEPS, None)
    report.figure("ddp_loss_late_difference_mean", float(np.mean(apart[late])))
    report.figure("reordered_loss_late_difference_mean", float(np.mean(reordered[late])))


def _apart(expected: list[float], found: list[float]) -> list[float]:
    return [abs(a - b) / abs(a) for a, b in zip(expected, found, strict=True)]


class _InHalves(nn.Module):
    """The networks of one rank, asked for half a batch at a time: what two ranks add up, in their order."""

    def __init__(self, networks: nn.Module) -> None:
        super().__init__()
        self.networks = networks

    def forward(self, images: Tensor, n_peer: int) -> tuple[Tensor, Tensor | None]:
        cut = n_peer // 2 if n_peer else len(images) // 2
        student, peer = zip(
            self.networks(images[:cut], cut if n_peer else 0),
            self.networks(images[cut:], n_peer - cut if n_peer else 0),
            strict=True,
        )
        return torch.cat(student), torch.cat(peer) if n_peer else None


def _rank(rank: int, address: str, seed: int, rounds: int, results: Connection | None) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    shape = SHAPES[0]
    alone, reordered = (made_learner(shape, "ours", seed, World()) for _ in range(2))
    reordered._parallel = _InHalves(reordered._parallel)
    both = made_learner(shape, "ours", seed, World.current())
    apart = made_learner(shape, "ours", seed, World())
    seen: dict[str, list[float]] = {
        f"{who}_{what}": [] for who in ("one", "two", "half", "reordered") for what in ("s", "loss")
    }
    for number in range(rounds + 1):
        for who, learner in (("one", alone), ("reordered", reordered)) if rank == 0 else ():
            seconds, losses = _steps(learner, shape, seed, number, slice(None))
            _note(seen, who, seconds, losses, number)
        dist.barrier()  # the other rank sleeps here while this one works alone
        own = shape.classes // RANKS * shape.images
        seconds, losses = _steps(both, shape, seed, number, slice(rank * own, (rank + 1) * own))
        _note(seen, "two", seconds, losses, number)
        dist.barrier()
        seconds, losses = _steps(apart, shape, seed, number, slice(rank * own, (rank + 1) * own))
        _note(seen, "half", seconds, losses, number)
        dist.barrier()
    if results is not None:
        results.send(seen)
    dist.destroy_process_group()


def _note(seen: dict[str, list[float]], who: str, seconds: float, losses: list[float], number: int) -> None:
    seen[f"{who}_loss"] += losses
    if number:  # the first round allocates
        seen[f"{who}_s"].append(seconds)


def _steps(learner: Any, shape: Shape, seed: int, number: int, rows: slice) -> tuple[float, list[float]]:
    batches = [made_batch(shape, seed + (STEPS * number + i) % BATCHES) for i in range(STEPS)]
    began = time.perf_counter()
    losses = [learner.step(pixels[rows], labels[rows]).losses["total"] for pixels, labels in batches]
    return (time.perf_counter() - began) / STEPS, losses
