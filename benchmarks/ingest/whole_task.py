"""One task of a million images through a running stream, while the memory of every process of it is watched."""

from __future__ import annotations

import json
import struct
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from benchmarks.common import Report
from benchmarks.ingest.watching import MemoryWatch
from stream_odml.cluster.session import run_stream
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.landing import complete_task
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store

SIDE, DIM, SHARD_ROWS, CLASS_IMAGES = 32, 128, 1000, 500
BASE_SHARDS = 4
STEPS = 20
WAIT_S = 3600.0
ROLES = {
    "indexer": "ray::Indexer",
    "driver": "ray::StreamDriver",
    "train_worker": "RayTrainWorker",
    "reader": "MapBatches",
    "stream": "benchmarks.ingest",
}
"""What a process is by a word of its command line; all others are Ray's own."""


def measure(report: Report, seed: int) -> None:
    """Index, decode, learn and commit a base task and then one of 10^6 images; nothing serves meanwhile."""
    measure_images(report, seed, 50_000 if report.quick else 1_000_000)


def measure_images(report: Report, seed: int, images: int) -> None:
    """The same for any number of images."""
    with tempfile.TemporaryDirectory() as folder:
        config = stream_config(Path(folder), seed)
        inbox = Path(inbox_path(config))
        inbox.mkdir(parents=True)
        began = time.perf_counter()
        with MemoryWatch(ROLES) as watch, run_stream(config) as session:
            _land(report, inbox, seed, 0, BASE_SHARDS, "base")
            _until(report, session, 1)
            base = watch.peaks()
            landing = _land(report, inbox, seed, BASE_SHARDS, images // SHARD_ROWS, "million")
            learning = time.perf_counter()
            _until(report, session, 2)
            ended = time.perf_counter()
        found = _found(config, images)
    gib = images * SIDE * SIDE * 3 / 2**30
    report.row(
        part="task", seed=seed, images=images, task_gib=gib, landing_s=landing,
        landed_to_committed_s=ended - learning, wall_s=ended - began, peak_mib=watch.peaks(), base_peak_mib=base,
        processes=watch.processes(), **found,
    )  # fmt: skip
    report.figure("task_images", images)
    report.figure("task_gib", gib)
    report.figure("task_wall_s", ended - began)
    report.figure("task_rows_lost_or_twice", abs(found["committed_rows"] - images) + found["twice"])
    for role, mib in watch.peaks().items():
        report.figure(f"task_peak_mib_{role}", mib)
    report.figure("task_peak_mib_over_task", max(watch.peaks().values()) / (gib * 1024))


def stream_config(folder: Path, seed: int) -> StreamConfig:
    """Two indexers, two workers, tasks closed by their producer only, nothing served."""
    from transformers import ResNetConfig

    # What is measured is memory: the smallest net that learns, so that a million images take minutes.
    ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1], layer_type="basic").save_pretrained(
        folder / "net"
    )
    return parse_config(
        {
            "name": "task",
            "root": str(folder / "root"),
            "seed": seed,
            "method": "distilled",  # every stage trains
            "model": {"backbone": f"transformers:{folder / 'net'}", "dim": DIM, "image_size": SIDE},
            "learning": {
                "base_steps": STEPS, "stage_steps": STEPS, "classes_per_batch": 32, "images_per_class": 4,
            },
            "boundary": {"new_classes": None, "images": None, "age_s": None},
            "gate": {"enabled": False},
            "cluster": {"serve": False, "indexers": 2},
            "service": {"port": 0},
            "metrics": {"port": 0},
        }
    )  # fmt: skip


def _land(report: Report, inbox: Path, seed: int, first: int, count: int, task: str) -> float:
    began = time.perf_counter()
    names = [f"s{number:05d}.parquet" for number in range(first, first + count)]
    for number, name in report.track(list(enumerate(names, first)), "shards landed"):
        pq.write_table(made_shard(seed, number), inbox / f".{name}", row_group_size=256)
        (inbox / f".{name}").rename(inbox / name)
    complete_task(inbox, task, names)
    return time.perf_counter() - began


def made_shard(seed: int, number: int) -> pa.Table:
    """Images of noisy 8 x 8 patterns, a pattern a class, as PNGs of some 300 bytes."""
    random = np.random.default_rng((seed, number))
    images, names = [], []
    for row in range(SHARD_ROWS):
        of = (number * SHARD_ROWS + row) // CLASS_IMAGES
        pattern = np.random.default_rng((seed, 1, of)).integers(0, 3, (8, 8), np.uint8)
        pattern[tuple(random.integers(0, 8, (2, 6)))] = random.integers(0, 3, 6)
        images.append(_png(np.kron(pattern * 90, np.ones((SIDE // 8, SIDE // 8), np.uint8))))
        names.append(f"class {of:05d}")
    ids = [f"{number}/{row}" for row in range(SHARD_ROWS)]
    return pa.table({"image": pa.array(images, pa.binary()), "class_name": names, "item_id": ids})


def _png(grey: NDArray[np.uint8]) -> bytes:
    height, width = grey.shape
    lines = np.zeros((height, width + 1), np.uint8)
    lines[:, 1:] = grey
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 1)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _until(report: Report, session: Any, stages: int) -> None:
    deadline, said = time.monotonic() + WAIT_S, ""
    while True:
        status = session.status(timeout_s=60)
        if status["stages_committed"] >= stages:
            return
        if time.monotonic() > deadline or status["problem"]:
            raise RuntimeError(f"stage {stages} did not come: {json.dumps(status, default=str)[:2000]}")
        now = f"{status['stage']['phase']}, {status['shards']['indexed']} shards indexed"
        if now != said:
            report.say(now)
            said = now
        time.sleep(2.0)


def _found(config: StreamConfig, images: int) -> dict[str, Any]:
    """What the head holds of the task, and how long its parts took."""
    store = Store.open(config.root, keep_gallery=False)
    head = store.tree.get(store.tree.head)
    rows = sum(len(part) for _, part in store.scan(["row"], pc.field("version") == head.version_id))
    ids: Iterator[Any] = (
        part["item_id"] for _, part in store.scan(["item_id"], pc.field("version") == head.version_id)
    )
    distinct = len(pa.chunked_array([chunk for column in ids for chunk in column.chunks]).unique())
    keys = ("seconds", "boundary_to_first_step_s", "steps", "classes", "workers")
    return {
        "committed_rows": rows,
        "twice": rows - distinct,
        "stage": {key: head.metrics.get(key) for key in keys},
    }
