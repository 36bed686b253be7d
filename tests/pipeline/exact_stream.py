"""A root in exact form whose tasks are learnt by fast stages alone: features are given, no trunk has to make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.boundary import BoundaryPolicy
from stream_odml.ingest.shard import ShardManifest
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.lift import Lift
from stream_odml.pipeline.fast_stage import fast_stage
from stream_odml.pipeline.messages import StageOrder, StageResult
from stream_odml.pipeline.stages import Stages
from stream_odml.store.artifacts import HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import IngestBatch, Writer
from tests.cluster.small_root import shard

D = 24
Floats = NDArray[np.float32]


def features(names: Sequence[str], seed: int = 0) -> Floats:
    """A feature of each name: its class's own mean, and directions in which classes do not differ at all."""
    random = np.random.default_rng(seed)
    means = {name: np.random.default_rng([7, *name.encode()]).random(D) for name in sorted(set(names))}
    noise = random.normal(0, 1, (len(names), D)) * np.where(np.arange(D) < D // 3, 1.5, 0.15)
    return np.maximum(np.stack([means[name] for name in names]) * 3 + noise, 0).astype(np.float32)


class ExactStream:
    """A writer, and tasks that a manifest closes."""

    def __init__(self, root: Path, **config: Any) -> None:
        self.config: StreamConfig = parse_config(
            {
                "root": str(root),
                "model": {"head": "discriminant", "dim": 12, "image_size": 16},
                "evaluation": {"held_out": 0.3},
                **config,
            }
        )
        store = Store.create(str(root), D, form="exact", keep_gallery=False)
        self.writer = Writer.claim(store, "test", takeover=True)
        sums = ClassSums.empty(Lift(D, self.config.model.lift or 0))
        head = solve_head(sums, HeadSettings(dim=12))
        self.writer.commit_root(
            {STUDENT: b"a pretrained trunk", HEAD: head.to_bytes(), SUMS: sums.to_bytes()}, {SUMS_SEQ: -1}
        )
        policy = BoundaryPolicy(new_classes=None, images=None, age_s=None)
        self.stages = Stages(self.writer, policy, 1, learns_trunk=False)

    def land(
        self, name: str, classes: Mapping[str, int], held_out: int = 0, seed: int = 0, closes: bool = True
    ) -> str:
        """Land and index one shard, which closes a task; of each class the first images are held out."""
        ref = shard(name, ShardManifest(task_complete=closes))
        names = [c for c, count in classes.items() for _ in range(count)]
        held = [i < held_out for count in classes.values() for i in range(count)]
        h = features(names, seed + len(self.writer.ledger.shards))
        self.writer.record_landed([ref])
        head = self.writer.tree.head
        rows = gallery_rows(
            item_ids=[f"{name}/{i}" for i in range(len(names))], class_names=names, shard_ids=ref.shard_id,
            rows=range(len(names)), vectors=h, version=head, held_out=held, codes="int8",
        )  # fmt: skip
        trainable = {c: count - min(held_out, count) for c, count in classes.items()}
        counts = {ref.shard_id: {"trainable": trainable, "reasons": {}, "version": head}}
        self.writer.commit_ingest(IngestBatch([ref.shard_id], rows, counts=counts))
        self.stages.close_tasks()
        return ref.shard_id

    def order(self) -> StageOrder:
        """The next, which must be one for a fast stage."""
        order = self.stages.solve_next()
        assert order is not None
        return order

    def solved(self, order: StageOrder) -> StageResult:
        """What another process computes of an order."""
        return fast_stage(Store.open(self.config.root), order, self.config)

    def learn(self) -> StageResult:
        """The next task, from order to commit."""
        result = self.solved(self.order())
        self.stages.commit(result)
        return result
