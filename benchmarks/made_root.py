"""Made-up trunk features, a root in exact form that holds them, and the peak of memory of what is done with them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np

from stream_odml.ingest.shard import ShardRef
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import solve_head
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.lift import Lift
from stream_odml.store.artifacts import HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import IngestBatch, Writer

D = 1280
BLOCK = 8192
GIB = 2**30
SHARD = 2_000
T = TypeVar("T")


def made_features(n: int, classes: int, seed: int) -> tuple[FeatureCodes, list[str]]:
    """Stored features of made-up classes, non-negative and of decaying variance as those of a trunk, block by block."""
    rng = np.random.default_rng(seed)
    label_n = np.arange(n) % classes
    deviation_D = np.linspace(1.5, 0.1, D, dtype=np.float32)
    means_CD = 1 + rng.standard_normal((classes, D), np.float32) * deviation_D
    codes, scales = np.empty((n, D), np.int8), np.empty(n, np.float32)
    for at in range(0, n, BLOCK):
        rows = slice(at, at + BLOCK)
        noise = rng.standard_normal((len(label_n[rows]), D), np.float32) * deviation_D
        block = encode(np.maximum(means_CD[label_n[rows]] + noise, 0))
        codes[rows], scales[rows] = block.codes_nD, block.scale_n
    return FeatureCodes(codes, scales), [f"class {c:06d}" for c in label_n]


def new_root(root: str, lift: Lift) -> Writer:
    """Make a root whose first version has a trunk and a head of nothing; return its writer."""
    Store.create(root, D, form="exact")
    writer = Writer.claim(root, "benchmark")
    empty = ClassSums.empty(lift)
    artifacts = {STUDENT: b"a trunk", HEAD: solve_head(empty).to_bytes(), SUMS: empty.to_bytes()}
    writer.commit_root(artifacts, {SUMS_SEQ: -1})
    return writer


def land(writer: Writer, shard: str, features: FeatureCodes, names: list[str], held_out: float = 0.0) -> None:
    """Land one shard of features, of which the first share is held out."""
    ref = ShardRef(shard, shard, f"/inbox/{shard}", "parquet", 1, 0, shard)
    writer.record_landed([ref])
    held = np.arange(len(names)) < held_out * len(names)
    rows = gallery_rows(
        item_ids=[f"{shard}/{i}" for i in range(len(names))],
        class_names=names,
        shard_ids=shard,
        rows=range(len(names)),
        vectors=features.decode(),
        version=writer.tree.head,
        held_out=held.tolist(),
        codes="int8",
    )
    trainable: dict[str, int] = {}
    for name in np.array(names)[~held].tolist():
        trainable[name] = trainable.get(name, 0) + 1
    counts = {shard: {"trainable": trainable, "reasons": {}, "version": writer.tree.head}}
    writer.commit_ingest(IngestBatch([shard], rows, counts=counts))


def watched(work: Callable[[], T]) -> tuple[float, float, T]:
    """(seconds, highest memory beside what there was before, in GiB and without pages of mapped files, which the kernel
    takes back when it needs them; result) of some work."""
    before, highest, done = _anonymous_gib(), [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.005):
            highest.append(_anonymous_gib())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = work()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return seconds, max(max(highest) - before, 0.0), result


def _anonymous_gib() -> float:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024 / GIB
