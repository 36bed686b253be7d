"""The estimate of what a stage costs old classes sees the vectors of learnt items, as a reader would, and no others."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from stream_odml.learn.drift import AffineMap, DriftMap, IdentityMap
from stream_odml.learn.finish import StageOutcome
from stream_odml.pipeline.estimating import estimate_old
from stream_odml.store.tables import gallery_rows
from stream_odml.store.writer import IngestBatch, Writer
from tests.cluster.small_root import DIM, artifacts, claim, shard

CLASSES, EACH = 12, 6
LOST = AffineMap(np.zeros((DIM, DIM)), np.ones(DIM))


def outcome(forward: DriftMap, error: float = 0.0, variance: float = 1.0) -> StageOutcome:
    nothing = np.empty(0)
    return StageOutcome(
        cast(Any, None), cast(Any, None), forward, forward, nothing.astype(np.int64),
        nothing.astype(np.float32), {"forward_error": error, "parent_variance": variance},
    )  # fmt: skip


def rows(shard_id: str, prefix: str, version: str) -> pa.Table:
    """Tight classes far apart, whatever the version."""
    labels = np.repeat(np.arange(CLASSES), EACH)
    random = np.random.default_rng(0)
    vectors = random.normal(size=(CLASSES, DIM))[labels] + 0.01 * random.normal(size=(len(labels), DIM))
    return gallery_rows(
        item_ids=[f"{prefix}{i}" for i in range(len(labels))],
        class_names=[f"{prefix}class {c}" for c in labels],
        shard_ids=shard_id,
        rows=range(len(labels)),
        vectors=vectors.astype(np.float32),
        version=version,
    )


def land(writer: Writer, name: str) -> str:
    ref = shard(name)
    writer.record_landed([ref])
    writer.commit_ingest(IngestBatch([ref.shard_id], rows(ref.shard_id, name, writer.tree.head)))
    return ref.shard_id


def learn(writer: Writer, name: str, task: str) -> None:
    shard_id = land(writer, name)
    writer.close_task(task, [shard_id], "test")
    version = writer.begin_attempt(task)
    writer.commit_stage(
        version, writer.tree.head, task, artifacts(writer, version), rows(shard_id, name, version)
    )


def test_learnt_items_are_looked_at_and_only_they(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    store, root = writer.store, writer.tree.head
    land(writer, "waiting")
    assert estimate_old(store, root, outcome(LOST), seed=0) == {}
    learn(writer, "old", "task-0001")
    good = estimate_old(store, writer.tree.head, outcome(IdentityMap()), seed=0)
    assert good.pop("task_spread") == pytest.approx(
        1 / DIM, rel=0.5
    )  # the vectors vary by one in each dimension
    assert good == {"parent_recall_at_1/old/estimated": 1.0, "recall_at_1/old/estimated": 1.0}
    alike = estimate_old(store, writer.tree.head, outcome(IdentityMap(), variance=0.0), seed=0)
    assert alike["task_spread"] == 0.0
    bad = estimate_old(store, writer.tree.head, outcome(LOST), seed=0)
    assert bad["recall_at_1/old/estimated"] < 0.2
    noisy = estimate_old(store, writer.tree.head, outcome(IdentityMap(), error=20.0), seed=0)
    assert noisy["recall_at_1/old/estimated"] == pytest.approx(1 / CLASSES, abs=0.2)
    writer.forget("shard", next(s for s in store.ledger.shards if s.startswith("old")))
    assert estimate_old(store, writer.tree.head, outcome(LOST), seed=0) == {}
    writer.release()
