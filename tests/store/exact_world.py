"""A small root in exact form whose versions are learnt as a stream does: a new trunk once, then heads under it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from stream_odml.ingest.shard import ShardRef
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.store.artifacts import BACKWARD, FORWARD, HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.sums import sums_now, task_rows
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import IngestBatch, Writer
from tests.store.world import Floats, Item, drift_pair, make_rows

D = 8
SETTINGS = HeadSettings(dim=3)
LIFT = Lift(D)


def exact_root(uri: str) -> Writer:
    """A claimed root in exact form, with a trunk and a head that was solved of nothing."""
    writer = Writer.claim(Store.create(uri, D, form="exact", keep_gallery=False), "test")
    empty = ClassSums.empty(LIFT)
    head = solve_head(empty, SETTINGS)
    writer.commit_root({STUDENT: b"trunk 0", HEAD: head.to_bytes(), SUMS: empty.to_bytes()}, {SUMS_SEQ: -1})
    return writer


def land(writer: Writer, shard_id: str, items: Sequence[Item], h: Floats, **more: Any) -> None:
    """Land and index one shard by the head's trunk."""
    writer.record_landed([ShardRef(shard_id, shard_id, f"/inbox/{shard_id}", "parquet", 1, 0, shard_id)])
    rows = make_rows(shard_id, list(items), h, writer.tree.head, codes=writer.store.row_codes, **more)
    writer.commit_ingest(IngestBatch([shard_id], rows))


def fast_stage(writer: Writer, task: str, shards: Sequence[str]) -> str:
    """Learn a task under the head's trunk: sums and a head, no image and no row."""
    writer.close_task(task, shards, "test")
    version_id, parent, store = writer.begin_attempt(task), writer.tree.head, writer.store
    sums = sums_now(store, parent).plus(task_rows(store, parent, shards).sums(LIFT))
    data = {HEAD: solve_head(sums, SETTINGS).to_bytes(), SUMS: sums.to_bytes()}
    refs = {name: writer.put_artifact(version_id, name, part) for name, part in data.items()}
    refs[STUDENT] = store.tree.get(parent).artifacts[STUDENT]
    writer.commit_stage(version_id, parent, task, refs, metrics={SUMS_SEQ: store.ledger.seq})
    return version_id


def new_trunk(writer: Writer, task: str, shard: str, items: Sequence[Item], h: Floats, seed: int) -> str:
    """Learn the first task as the slow stage does: another trunk, whose features `h` of the task's shard are given."""
    writer.close_task(task, [shard], "test")
    version_id, parent, store = writer.begin_attempt(task), writer.tree.head, writer.store
    sums = ClassSums.of(LIFT, encode(h.astype(np.float32)), [item.class_name for item in items])
    forward, backward = drift_pair(seed, D)
    data = {
        STUDENT: f"trunk {seed}".encode(),
        FORWARD: forward.to_bytes(),
        BACKWARD: backward.to_bytes(),
        HEAD: solve_head(sums, SETTINGS).to_bytes(),
        SUMS: sums.to_bytes(),
    }
    refs = {name: writer.put_artifact(version_id, name, part) for name, part in data.items()}
    rows = make_rows(shard, list(items), h, version_id, codes=store.row_codes)
    writer.commit_stage(version_id, parent, task, refs, rows, {SUMS_SEQ: store.ledger.seq})
    return version_id
