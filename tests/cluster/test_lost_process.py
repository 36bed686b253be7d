"""What a rank sees when another process goes is not counted against the stage; its own errors are."""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
import ray
import torch
import torch.distributed as dist

from stream_odml.cluster.actors import DriverGone
from stream_odml.cluster.trainer import is_loss_of_a_process
from tests.killed import SERVER


def _rank(
    rank: int, folder: str, words: multiprocessing.SimpleQueue[tuple[bool, str]], together: Barrier
) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    dist.all_reduce(torch.ones(1))
    together.wait()  # else the first exchange may be cut off, too, before the other rank has got its part
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    try:
        dist.all_reduce(torch.ones(1))
    except Exception as error:
        words.put((is_loss_of_a_process(error), f"{type(error).__name__}: {error}"))


def test_a_peer_that_is_killed(tmp_path: Path) -> None:
    """By a real one: the words of gloo may change with a release of torch."""
    words, together = SERVER.SimpleQueue(), SERVER.Barrier(2)
    ranks = [SERVER.Process(target=_rank, args=(rank, str(tmp_path), words, together)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(200)
    assert not words.empty(), "rank 0 saw no error"
    lost, text = words.get()
    assert lost, text


@pytest.mark.parametrize("error", [ray.exceptions.WorkerCrashedError(), DriverGone("away")])
def test_a_process_of_ray_that_went(error: Exception) -> None:
    assert is_loss_of_a_process(error)


@pytest.mark.parametrize("error", [ValueError("labels"), RuntimeError("out of memory"), MemoryError()])
def test_an_error_of_its_own(error: Exception) -> None:
    assert not is_loss_of_a_process(error)
