"""One rank and two ranks learn the same stage: losses, weights, bank and maps, with uneven slices too."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import AffineMap, drift_map_from_bytes
from stream_odml.learn.embedder import embedder_from_bytes, embedder_to_bytes, trunk_of
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.stage import StageDiverged, StageLearner
from stream_odml.learn.world import World
from tests.killed import START
from tests.learn.tiny import SETTINGS, SPEC, after, batch, finish, learner

STEPS = 10
# The views of the last pass pair the images of one rank: only the map depends on them, and on the world.
_NO_VIEWS = replace(SETTINGS, stage_steps=STEPS, map_composites=0)
CASES: dict[str, StageSettings] = {
    "ours": replace(_NO_VIEWS, gallery_map="affine+kernel"),
    "sparse": replace(
        _NO_VIEWS, weight_distill=5.0, weight_composites=0.0, peer_every=3, metric_loss="pml:ProxyAnchorLoss"
    ),  # a class over two ranks
    "faithful": replace(
        _NO_VIEWS, weight_distill=0.0, weight_composites=0.0, kernel="cosine", metric_loss="hard_pairs"
    ),
    "first": replace(_NO_VIEWS, base_steps=STEPS, whitening=0.5),
    "trunk": _NO_VIEWS,
}
SPLIT = {"ours": 8, "sparse": 10, "faithful": 8, "first": 8, "trunk": 8}  # rows of rank 0, of 16


def learn_here(folder: Path, case: str, world: World) -> dict[str, Tensor]:
    """The losses, the weights and what is left of the third stage, learnt by this world."""
    if case == "trunk":
        old = embedder_from_bytes((folder / "trunk").read_bytes())
        older = {"v0": AffineMap(0.9 * np.eye(old.out_dim), np.zeros(old.out_dim))}
        stage = StageLearner(
            CASES[case], old, ClassBank.empty(old.out_dim), n_classes=6, version_id="v3", seed=2, world=world,
            backward_maps=older, moves_trunk=True,
        )  # fmt: skip
    else:
        bank = ClassBank.from_bytes((folder / "bank").read_bytes())
        old = embedder_from_bytes((folder / "old").read_bytes())
        stage = learner(2, old, ClassBank.empty(SPEC.dim) if case == "first" else bank, CASES[case], world)
    mine = slice(None) if world.size == 1 else (slice(0, SPLIT[case]), slice(SPLIT[case], 16))[world.rank]
    totals = []
    for step in range(STEPS):
        pixels, labels = batch(2, step)
        totals.append(stage.step(pixels[mine], labels[mine]).losses["total"])
    out = {f"weights.{k}": v for k, v in stage.state_dict().items() if k.startswith(("networks", "metric"))}
    outcome = finish(stage, 2, world.rank, world.size)
    probe = np.linspace(-1, 1, 5 * old.out_dim, dtype=np.float32).reshape(5, -1)
    forward, backward = (drift_map_from_bytes(m.to_bytes()) for m in (outcome.forward, outcome.backward))
    left = {"bank": outcome.bank.means, "fwd": forward.apply(probe), "back": backward.apply(probe)}
    return {"losses": torch.tensor(totals), **out, **{k: torch.from_numpy(v) for k, v in left.items()}}


def rank_main(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    world = World.current()
    check_gather(world)
    for case in CASES:
        save_file(learn_here(Path(folder), case, world), f"{folder}/{case}.{rank}")
    check_divergence(Path(folder), world)
    dist.barrier()
    dist.destroy_process_group()
    # torch keeps gloo's threads after a DDP, even when the group is destroyed; one that is busy while the
    # interpreter ends aborts the process ("terminate called without an active exception").
    os._exit(0)


def check_gather(world: World) -> None:
    """Uneven rows arrive in rank order, and each gets the gradient of the whole, once DDP has averaged."""
    x = torch.full((2 + world.rank, 3), float(world.rank + 1), requires_grad=True)
    gathered = world.gather(x)
    assert gathered[:, 0].tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]
    (gathered**2).sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert torch.equal(x.grad / world.size, 2 * x.detach())
    assert world.sum(torch.tensor([1.0 + world.rank])).item() == 3.0


def check_divergence(folder: Path, world: World) -> None:
    """A NaN on one rank stops both at the same step: none is left waiting in a collective."""
    bank = ClassBank.from_bytes((folder / "bank").read_bytes())
    stage: StageLearner = learner(
        2, embedder_from_bytes((folder / "old").read_bytes()), bank, SETTINGS, world
    )
    if world.rank == 1:
        with torch.no_grad():
            next(stage.networks.student.parameters()).fill_(torch.nan)
    with pytest.raises(StageDiverged):
        stage.step(*(part[world.rank * 8 : world.rank * 8 + 8] for part in batch(2, 0)))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ranks")
    old, bank = after(2)
    (path / "old").write_bytes(embedder_to_bytes(old))
    (path / "bank").write_bytes(bank.to_bytes())
    trunk = trunk_of(old, replace(SPEC, head="discriminant"))
    (path / "trunk").write_bytes(embedder_to_bytes(trunk))
    start_processes(rank_main, (str(path),), nprocs=2, start_method=START)  # type: ignore[no-untyped-call]
    return path


@pytest.mark.parametrize("case", CASES)
def test_one_rank_and_two_ranks_learn_the_same(folder: Path, case: str) -> None:
    alone = learn_here(folder, case, World())
    first, second = (load_file(f"{folder}/{case}.{rank}") for rank in range(2))
    assert first.keys() == second.keys() == alone.keys()
    for key, value in first.items():
        assert torch.equal(value, second[key]), f"ranks differ in {key}"
    assert alone["losses"].numpy() == pytest.approx(first["losses"].numpy(), rel=1e-4)
    for key, value in alone.items():
        # Ten steps magnify what rounding leaves, by as much as a processor's instructions round otherwise; a map
        # magnifies what its small directions lack. A gradient that is wrong by a tenth fails still.
        near = 2e-3 if key in ("fwd", "back") else 5e-4
        assert value.numpy() == pytest.approx(first[key].numpy(), rel=1e-4, abs=near), key


def test_a_world_of_one_needs_no_process_group() -> None:
    world = World.current()
    x = torch.ones(2, 3)
    assert (world.rank, world.size) == (0, 1)
    assert world.gather(x) is x
    assert world.sum(x) is x
