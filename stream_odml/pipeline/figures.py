"""Reads the figures of a stream from its store, for the metrics exporter and `status`."""

from __future__ import annotations

import time
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa

from stream_odml.config.masking import masked_text
from stream_odml.ingest.reading import UNLABELLED
from stream_odml.pipeline.later_stages import renewal
from stream_odml.pipeline.metrics import StreamFigures
from stream_odml.store.select import COLUMNS, encode, select_rows
from stream_odml.store.store import Store
from stream_odml.store.unlearnt import unlearnt_tasks
from stream_odml.store.version_metrics import FORMS, SPLITS, VersionMetrics
from stream_odml.store.versions import VersionTree

MAX_COUNTED = 500_000
"""Rows taken in up to which `gallery_counts` reads the gallery."""


def stream_figures(store: Store, epoch: int) -> StreamFigures:
    """Read every count, age and quality figure from `store` as it was last refreshed."""
    ledger, tree = store.ledger, store.tree
    due, now = ledger.due_tasks(tree.learnt()), time.time()
    # A rollback makes a task due again, which the queue shows; a counter must not fall.
    ever_learnt = [
        ledger.tasks[t] for t in {v.task or "" for v in tree.versions.values()} if t in ledger.tasks
    ]
    # A task's members are in landing order, so its first is its oldest; indexers may overtake one another.
    waiting = {
        "index": islice(ledger.landed.values(), 1),
        "boundary": ledger.indexed.values(),
        "learn": (ledger.shards[task.shard_ids[0]] for task in due),
    }
    oldest = {queue: [shard.landed_at.timestamp() for shard in shards] for queue, shards in waiting.items()}
    return StreamFigures(
        shards={
            "landed": len(ledger.shards),
            "indexed": ledger.tally.indexed,
            "assigned": ledger.tally.assigned,
            "learnt": sum(len(task.shard_ids) for task in ever_learnt),
            "set_aside": ledger.tally.set_aside,
        },
        images={
            "ingested": ledger.tally.rows,
            "quarantined": ledger.tally.quarantined,
            "held_out": ledger.tally.held_out,
            "learnt": sum(task.images for task in ever_learnt),
        },
        quarantined=dict(ledger.tally.reasons),
        in_quarantine=store.refused(),
        queue_shards={
            "index": len(ledger.landed),
            "boundary": len(ledger.indexed),
            "learn": sum(len(task.shard_ids) for task in due),
        },
        queue_age_s={queue: max(0.0, now - min(times, default=now)) for queue, times in oldest.items()},
        classes=len(ledger.tally.classes) - (UNLABELLED in ledger.tally.classes),
        stages_committed=sum(version.parent is not None for version in tree.versions.values()),
        # That a slow stage serves no more is no fault of the stream: the fast version serves.
        gate_refusals=sum(refusal.version_id not in ledger.later_attempts for refusal in tree.refusals),
        epoch=epoch,
        **(_of_head(store) if tree.moves else {}),
    )


def gallery_counts(store: Store) -> dict[str, int] | None:
    """Return how many items can be found in a store as it was last refreshed, and of how many classes. None of a root
    that took in more than MAX_COUNTED rows, whose gallery would take long to read."""
    if store.ledger.tally.rows > MAX_COUNTED:
        return None

    def read() -> dict[str, int]:
        parts = [rows for _, rows in store.scan(COLUMNS)]
        if not parts:  # Arrow loads pandas to make an empty table
            return {"items": 0, "classes": 0}
        rows = pa.concat_tables(parts)
        living = select_rows(rows, store.ledger, store.tree, store.tree.head).picked
        codes, names = encode(rows["class_name"])
        living_names = {names[int(code)].as_py() for code in np.unique(codes[living])}
        return {"items": len(living), "classes": len(living_names - {UNLABELLED})}

    return store.again(read)


def _of_head(store: Store) -> dict[str, Any]:
    """Return the figures of the version that is served, and the tasks that it has not learnt."""
    tree = store.tree
    head, root = tree.get(tree.head), masked_text(store.uri)
    metrics = VersionMetrics.read(head.metrics)
    recalls = {(split, form): metrics.recall(split, form) for split in SPLITS for form in FORMS}
    return {
        "not_learnt": [task.as_json() for task in unlearnt_tasks(store.ledger, tree, root=root)],
        "head": head.version_id,
        "head_committed_at": head.time.timestamp(),
        "recall_at_1": {place: value for place, value in recalls.items() if value is not None},
        "forgetting": metrics.forgetting,
        "held_out_set": metrics.held_out_set,
        "drift": dict(metrics.drift),
        "slow_stage": _slow_stage(tree),
        "renewal": renewal(store),
    }


def _slow_stage(tree: VersionTree) -> dict[str, float]:
    """Return recall of the last slow stage on the head's lineage, as served and once all is embedded anew, and of the
    version that it had to pass."""
    for version_id in reversed(tree.lineage(tree.head)):
        metrics = VersionMetrics.read(tree.get(version_id).metrics)
        if metrics.kind == "slow":
            figures = {
                "fast": metrics.parent_recall_at_1.get("union"),
                "slow": metrics.recall("union", "served"),
                "renewed": metrics.recall("union", "reextracted"),
            }
            return {name: value for name, value in figures.items() if value is not None}
    return {}
