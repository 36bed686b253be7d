"""Made-up vectors: classes about their means, and directions in which they do not differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.exchange.source import as_lists
from stream_odml.ingest.shard import ShardRef
from stream_odml.pipeline.fast_stage import fast_stage
from stream_odml.pipeline.stages import Stages
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows
from stream_odml.store.writer import IngestBatch, Writer

GIB = 2**30
BLOCK = 50_000


def means(classes: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Return the mean of each class [classes, dim]."""
    return np.random.default_rng(seed).standard_normal((classes, dim)).astype(np.float32)


def vectors(
    mean: NDArray[np.float32], labels: NDArray[np.int64], seed: int, loudness: float = 1.0
) -> NDArray[np.float32]:
    """Return a vector of each label: its mean, and noise that is larger in a quarter of the directions."""
    random, dim = np.random.default_rng(seed), mean.shape[1]
    spread = (loudness * np.where(np.arange(dim) < dim // 4, 4.0, 0.8)).astype(np.float32)
    noise: NDArray[np.float32] = random.standard_normal((len(labels), dim), np.float32) * spread
    return mean[labels] + noise


def write_table(path: Path, items: int, dim: int, classes: int, seed: int) -> None:
    """Write so many items as Parquet: id, class, vector."""
    mean, writer = means(classes, dim, seed), None
    for number, at in enumerate(range(0, items, BLOCK)):
        count = min(BLOCK, items - at)
        labels = np.random.default_rng([seed, number]).integers(0, classes, count)
        table = pa.table(
            {
                "id": [f"item-{i}" for i in range(at, at + count)],
                "class": [f"class {label}" for label in labels],
                "vector": as_lists(vectors(mean, labels, seed * 1000 + number + 1)),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="none")
        writer.write_table(table, row_group_size=BLOCK)
    if writer is not None:
        writer.close()


def vector_stream(root: Path, dim: int, **more: Any) -> StreamConfig:
    """Return the configuration of a stream of vectors; `more`: entries of its model."""
    model = {"backbone": "none", "head": "discriminant", "input_dim": dim, **more}
    boundary = {"new_classes": None, "images": None, "age_s": None}
    return parse_config({"root": str(root), "model": model, "boundary": boundary, "gate": {"enabled": False}})


def land_and_learn(config: StreamConfig, name: str, classes: list[str], h: NDArray[np.float32]) -> str:
    """Land vectors as one shard that is a task, as an indexer does, and learn it; the new version."""
    return land_and_learn_all(config, {name: (classes, h)})


def land_and_learn_all(
    config: StreamConfig, shards: Mapping[str, tuple[list[str], NDArray[np.float32]]]
) -> str:
    """Land classes and vectors by shard, and learn all as one task; the new version. Again after it was killed, it
    does what is left to do."""
    writer = Writer.claim(config.root, "benchmark", takeover=True)
    try:
        for name, (classes, h) in shards.items():
            _land(writer, name, classes, h)
        waiting = [name for name in shards if name in writer.ledger.indexed]
        if waiting:
            writer.close_task(writer.ledger.next_task_id, waiting, "all of it")
        stages = Stages(writer, config.boundary, config.gate.retries, config.learns_trunk)
        order = stages.solve_next()
        if order is None:
            return writer.tree.head
        return stages.commit(fast_stage(Store.open(config.root), order, config))
    finally:
        writer.release()


def _land(writer: Writer, name: str, classes: list[str], h: NDArray[np.float32]) -> None:
    writer.record_landed([ShardRef(name, name, f"/inbox/{name}", "parquet", 1, 0, name)])
    head = writer.tree.head
    rows = gallery_rows(
        item_ids=[f"{name}/{at}" for at in range(len(h))],
        class_names=classes,
        shard_ids=name,
        rows=range(len(h)),
        vectors=h,
        version=head,
        codes="int8",
    )
    counts = {name: {"trainable": dict(Counter(classes)), "version": head}}
    writer.commit_ingest(IngestBatch([name], rows, counts=counts))
