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

from benchmarks.common import Report
from benchmarks.training.made import SHAPES, Shape, made_batch, made_learner
from stream_odml.cluster.runtime import free_port
from stream_odml.learn.memory import keep_freed_memory
from stream_odml.learn.world import World

RANKS, STEPS = 2, 5
BATCHES = 8
EQUAL_STEPS = 20
"""The losses are compared over so many steps: later the last bits of two sums have grown into another course."""


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
    apart = [abs(a - b) / abs(a) for a, b in zip(seen["one_loss"], seen["two_loss"], strict=True)]
    report.row(part="ranks", **seen, relative=apart)
    report.figure("ddp2_efficiency", float(np.median(one / (RANKS * two))))
    report.figure("ddp2_ceiling_without_exchange", float(np.median(one / (RANKS * half))))
    report.figure("ddp_loss_relative_difference", max(apart[:EQUAL_STEPS]))
    report.figure("ddp_loss_relative_difference_all_steps", max(apart))


def _rank(rank: int, address: str, seed: int, rounds: int, told: Connection | None) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[rank % len(cores)]})
    torch.set_num_threads(1)
    keep_freed_memory()
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=RANKS)
    shape = SHAPES[0]
    alone = made_learner(shape, "ours", seed, World()) if rank == 0 else None
    both = made_learner(shape, "ours", seed, World.current())
    apart = made_learner(shape, "ours", seed, World())
    seen: dict[str, list[float]] = {
        f"{who}_{what}": [] for who in ("one", "two", "half") for what in ("s", "loss")
    }
    for number in range(rounds + 1):
        if alone is not None:
            seconds, losses = _steps(alone, shape, seed, number, slice(None))
            _note(seen, "one", seconds, losses, number)
        dist.barrier()  # the other rank sleeps here while this one works alone
        own = shape.classes // RANKS * shape.images
        seconds, losses = _steps(both, shape, seed, number, slice(rank * own, (rank + 1) * own))
        _note(seen, "two", seconds, losses, number)
        dist.barrier()
        seconds, losses = _steps(apart, shape, seed, number, slice(rank * own, (rank + 1) * own))
        _note(seen, "half", seconds, losses, number)
        dist.barrier()
    if told is not None:
        told.send(seen)
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
