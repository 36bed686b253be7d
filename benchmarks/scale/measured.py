"""The small runs behind the laws: each gives its law points to fit and larger points to be judged by."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.functional import normalize

from benchmarks.common import RESULTS, Report
from benchmarks.ingest.speed import ledger_entry, plain_ref
from benchmarks.scale.laws import Law
from benchmarks.serving.roots import MadeRoot
from stream_odml.cluster.runtime import free_port
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.drift import AffineMap, compose
from stream_odml.learn.losses import repel_loss
from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.ledger import LedgerState
from stream_odml.store.store import Store

DIM = 128
REPEATS = 5


def linear(name: str) -> Callable[[Any], list[float]]:
    """Terms 1 and the size of that name."""
    return lambda sizes: [1.0, sizes[name]]


def gallery_laws(report: Report, seed: int) -> list[Law]:
    """Loading a gallery, what it holds, following a stage, one exact query; by vectors."""
    load, held = Law("load_s", "s", linear("vectors")), Law("memory_gib", "GiB", linear("vectors"))
    swap, query = Law("stage_swap_s", "s", linear("vectors")), Law("exact_query_s", "s", linear("vectors"))
    # Above the size of the processor's cache, in which an exact query is far quicker than it will be.
    sizes = (20_000, 40_000) if report.quick else (100_000, 200_000, 400_000)
    for n in sizes:
        report.say(f"gallery of {n}")
        with tempfile.TemporaryDirectory() as folder:
            root = MadeRoot(str(Path(folder) / "root"), DIM, seed)
            root.ingest(root.vectors(n))
            for law, value in zip((load, held, swap, query), _read(root), strict=True):
                law.point(value, vectors=n)
            root.close()
    million = _known("gallery.json")
    for law, name in (
        (load, "load_1m_128_s"),
        (held, "loaded_1m_128_gib"),
        (swap, "stage_swap_1m_128_s"),
    ):
        if name in million:
            law.point(million[name], check=True, vectors=1e6)
    if "query_1m_128_ms" in million:
        query.point(million["query_1m_128_ms"] / 1e3, check=True, vectors=1e6)
    return [load, held, swap, query]


def _read(root: MadeRoot) -> tuple[float, float, float, float]:
    began = time.perf_counter()
    store = Store.open(root.uri)
    snapshot = GallerySnapshot.load(store, SearchSettings(kind="exact"))
    load = time.perf_counter() - began
    held = sum(snapshot.memory().values()) / 2**30
    root.stage()
    began = time.perf_counter()
    store.refresh()
    snapshot = snapshot.refreshed(store)
    swap = time.perf_counter() - began
    queries = np.random.default_rng(1).standard_normal((1, DIM), dtype=np.float32)
    query = _median(lambda: snapshot.search(queries, snapshot.version, 10))
    return load, held, swap, query


def bank_law(report: Report, seed: int) -> Law:
    """What the classes of the bank add to a training step."""
    law = Law("bank_step_s", "s", linear("classes"))
    torch.manual_seed(seed)
    labels = torch.arange(16).repeat_interleave(5)
    for classes, check in ((1_000, False), (4_000, False), (16_000, True)):
        z, old, bank = (normalize(torch.randn(n, DIM), dim=1) for n in (80, 80, classes))
        law.point(_median(partial(_repel, z.requires_grad_(), old, labels, bank)), check, classes=classes)
    return law


def _repel(z: torch.Tensor, old: torch.Tensor, labels: torch.Tensor, bank: torch.Tensor) -> None:
    torch.autograd.grad(repel_loss(z, old, labels, bank), z)


def exchange_law(report: Report, seed: int) -> Law:
    """A ring all-reduce of gradients: 2 (R-1) messages, 2 (R-1)/R of the bytes, over this machine's loopback."""

    def terms(sizes: Any) -> list[float]:
        ranks = sizes["ranks"]
        return [2 * (ranks - 1), 2 * (ranks - 1) / ranks * sizes["bytes"]]

    law = Law("exchange_s", "s", terms)
    points = [(2, 1 << 18, False), (2, 1 << 20, False), (2, 1 << 22, False), (2, 1 << 23, True)]
    for ranks, size, check in points:
        law.point(_all_reduce(ranks, size), check, ranks=ranks, bytes=size)
    return law


def _all_reduce(ranks: int, size: int) -> float:
    context = mp.get_context("spawn")
    ours, theirs = context.Pipe()
    address = f"tcp://127.0.0.1:{free_port()}"
    workers = [
        context.Process(target=_reduce, args=(rank, ranks, address, size, theirs if rank == 0 else None))
        for rank in range(ranks)
    ]
    for worker in workers:
        worker.start()
    seconds = float(ours.recv())
    for worker in workers:
        worker.join()
    return seconds


def _reduce(rank: int, ranks: int, address: str, size: int, results: Any) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=ranks)
    gradients = torch.zeros(size // 4)
    for _ in range(REPEATS):
        dist.all_reduce(gradients)
    seconds = _median(lambda: dist.all_reduce(gradients), 4 * REPEATS)
    dist.barrier()
    if results is not None:
        results.send(seconds)
    dist.destroy_process_group()


def poll_law(report: Report, seed: int) -> Law:
    """One look at an inbox whose shards are all known."""
    law = Law("poll_s", "s", linear("shards"))
    with tempfile.TemporaryDirectory() as folder:
        have = 0
        for shards in (2_000, 8_000):
            for number in range(have, shards):
                os.close(os.open(f"{folder}/{number:06d}.parquet", os.O_CREAT | os.O_WRONLY))
            have = shards
            known = {ref.stamp for ref in DirectorySource(folder, max_new=shards).poll(set())}
            source = DirectorySource(folder)
            source.poll(known)
            law.point(_median(partial(source.poll, known)), shards=shards)
    if "poll_100k_shards_s" in (known_figures := _known("ingest.json")):
        law.point(known_figures["poll_100k_shards_s"], check=True, shards=1e5)
    return law


def replay_law(report: Report, seed: int) -> Law:
    """A driver that starts again reads the whole ledger: three rows a shard."""
    law = Law("ledger_replay_s", "s", linear("shards"))
    for shards in (2_000, 8_000):
        rows = []
        for kind_number, kind in enumerate(("landed", "indexed", "assigned")):
            for i in range(shards):
                detail = plain_ref(i).to_dict() if kind == "landed" else {"rows": 10, "classes": {"c": 10}}
                task = f"task-{i // 1000:04d}" if kind == "assigned" else ""
                detail |= {"reason": "images"} if kind == "assigned" else {}
                rows.append(ledger_entry(kind_number * shards + i, kind, i, detail, task))
        law.point(_median(partial(LedgerState.replay, rows), 3), shards=shards)
    if "ledger_replay_s" in (known := _known("ingest.json")):
        law.point(known["ledger_replay_s"], check=True, shards=1e5)
    return law


def compose_law(report: Report, seed: int) -> Law:
    """A reader that starts composes the maps of all versions, one product of matrices a version."""
    law = Law("compose_s", "s", linear("versions"))
    rng = np.random.default_rng(seed)
    maps = [AffineMap(np.eye(DIM) + 0.01 * rng.normal(size=(DIM, DIM)), np.zeros(DIM)) for _ in range(128)]
    for versions, check in ((8, False), (32, False), (128, True)):
        law.point(_median(partial(_chain, maps[:versions])), check, versions=versions)
    return law


def _chain(maps: list[AffineMap]) -> None:
    whole: Any = maps[-1]
    for drift in reversed(maps[:-1]):
        whole = compose([drift, whole])


def commit_law(report: Report, seed: int) -> Law:
    """One tier-1 commit of a shard, by how many commits came before it (no maintenance between)."""
    law = Law("commit_s", "s", linear("commits"))
    goals = (20, 40, 80) if report.quick else (50, 100, 300)
    with tempfile.TemporaryDirectory() as folder:
        root = MadeRoot(str(Path(folder) / "root"), DIM, seed)
        seconds: list[float] = []
        for _ in range(goals[-1]):
            began = time.perf_counter()
            root.ingest(root.vectors(20))
            seconds.append(time.perf_counter() - began)
        for goal in goals:
            recent = float(np.median(seconds[max(0, goal - 20) : goal]))
            law.point(recent, check=goal == goals[-1], commits=goal)
        root.close()
    return law


def _known(name: str) -> dict[str, float]:
    """Figures of another benchmark's full run, where there is one."""
    path = RESULTS / name
    return dict(json.loads(path.read_text())["figures"]) if path.exists() else {}


def _median(work: Callable[[], object], times: int = REPEATS) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return float(np.median(seconds))
