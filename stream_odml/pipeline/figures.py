"""Reads the figures of a stream from its store, for the metrics exporter and `status`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import datetime
from itertools import islice

from stream_odml.config.masking import masked_text
from stream_odml.pipeline.later_stages import renewal
from stream_odml.pipeline.metrics import StreamFigures
from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.store import Store
from stream_odml.store.unlearnt import unlearnt_tasks
from stream_odml.store.version_metrics import FORMS, SPLITS, VersionMetrics
from stream_odml.store.versions import VersionTree


def stream_figures(store: Store, epoch: int) -> StreamFigures:
    """Read every count, age and quality figure from ``store`` as it was last refreshed."""
    ledger, tree = store.ledger, store.tree
    learnt = tree.learnt()
    # A rollback makes a task due again, which the queue shows; a counter must not fall.
    ever_learnt = frozenset(v.task for v in tree.versions.values() if v.task)
    figures = StreamFigures(
        shards=_shards(ledger, ever_learnt),
        images=_images(ledger, ever_learnt),
        quarantined=dict(ledger.tally.reasons),
        in_quarantine=store.refused(),
        classes=len(ledger.tally.classes),
        stages_committed=sum(version.parent is not None for version in tree.versions.values()),
        # That a slow stage serves no more is no fault of the stream: the fast version serves.
        gate_refusals=sum(not ledger.is_later(refusal.version_id) for refusal in tree.refusals),
        epoch=epoch,
    )
    _queues(figures, ledger, learnt)
    if tree.moves:
        figures.not_learnt = [
            task.as_json() for task in unlearnt_tasks(ledger, tree, root=masked_text(store.uri))
        ]
        head = tree.get(tree.head)
        figures.head = head.version_id
        figures.head_committed_at = head.time.timestamp()
        metrics = VersionMetrics.read(head.metrics)
        figures.recall_at_1 = {
            (s, f): value for s in SPLITS for f in FORMS if (value := metrics.recall(s, f)) is not None
        }
        figures.forgetting = metrics.forgetting
        figures.held_out_set = metrics.held_out_set
        figures.drift = dict(metrics.drift)
        figures.slow_stage = _slow_stage(tree)
        figures.renewal = renewal(store)
    return figures


def _slow_stage(tree: VersionTree) -> dict[str, float]:
    """Recall of the last slow stage on the head's lineage, and of the version that it had to pass."""
    for version_id in reversed(tree.lineage(tree.head)):
        metrics = VersionMetrics.read(tree.get(version_id).metrics)
        if metrics.kind == "slow":
            figures = {
                "fast": metrics.parent_recall_at_1.get("union"),
                "slow": metrics.recall("union", "served"),
            }
            return {name: value for name, value in figures.items() if value is not None}
    return {}


def _shards(ledger: LedgerState, learnt: frozenset[str]) -> dict[str, int]:
    return {
        "landed": len(ledger.shards),
        "indexed": ledger.tally.indexed,
        "assigned": ledger.tally.assigned,
        "learnt": sum(len(ledger.tasks[task].shard_ids) for task in learnt if task in ledger.tasks),
        "set_aside": ledger.tally.set_aside,
    }


def _images(ledger: LedgerState, learnt: frozenset[str]) -> dict[str, int]:
    return {
        "ingested": ledger.tally.rows,
        "quarantined": ledger.tally.quarantined,
        "held_out": ledger.tally.held_out,
        "learnt": sum(ledger.tasks[task].images for task in learnt if task in ledger.tasks),
    }


def _queues(figures: StreamFigures, ledger: LedgerState, learnt: frozenset[str]) -> None:
    due = ledger.due_tasks(learnt)
    figures.queue_shards = {
        "index": len(ledger.landed),
        "boundary": len(ledger.indexed),
        "learn": sum(len(task.shard_ids) for task in due),
    }
    # A task's members are in landing order, so its first is its oldest; indexers may overtake one another.
    figures.queue_age_s = {
        "index": _oldest(islice(ledger.landed.values(), 1)),
        "boundary": _oldest(ledger.indexed.values()),
        "learn": _oldest(ledger.shards[task.shard_ids[0]] for task in due),
    }


def _oldest(shards: Iterable[ShardState]) -> float:
    oldest: datetime | None = min((shard.landed_at for shard in shards), default=None)
    return 0.0 if oldest is None else max(0.0, time.time() - oldest.timestamp())
