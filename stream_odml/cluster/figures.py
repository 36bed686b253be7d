"""The figures of a stream, read from its store: what the exporter and `status` show."""

from __future__ import annotations

import time
from collections import Counter
from datetime import datetime

from stream_odml.cluster.metrics import StreamFigures
from stream_odml.gallery.ledger import LedgerState, ShardState
from stream_odml.gallery.store import Store

SPLITS = ("old", "new", "union")
FORMS = ("served", "reextracted", "stale")


def recall_key(split: str, form: str) -> str:
    """Name of a Recall@1 figure in a version's metrics."""
    return f"recall_at_1/{split}/{form}"


def stream_figures(store: Store, epoch: int) -> StreamFigures:
    """Read every count, age and quality figure from ``store`` as it was last refreshed."""
    ledger, tree = store.ledger, store.tree
    learnt = tree.learnt()
    reasons: Counter[str] = Counter()
    for shard in ledger.shards.values():
        reasons.update(shard.counts.get("reasons", {}))
    figures = StreamFigures(
        shards=_shards(ledger, learnt),
        images=_images(ledger, learnt),
        quarantined=reasons,
        classes=len({name for shard in ledger.shards.values() for name in shard.classes}),
        stages_committed=sum(version.parent is not None for version in tree.versions.values()),
        gate_refusals=len(tree.refusals),
        epoch=epoch,
    )
    _queues(figures, ledger, learnt)
    if tree.moves:
        head = tree.get(tree.head)
        figures.head = head.version_id
        figures.head_committed_at = head.time.timestamp()
        metrics = head.metrics
        figures.recall_at_1 = {
            (s, f): metrics[recall_key(s, f)] for s in SPLITS for f in FORMS if recall_key(s, f) in metrics
        }
        figures.forgetting = metrics.get("forgetting")
        figures.drift = {k.removeprefix("drift/"): v for k, v in metrics.items() if k.startswith("drift/")}
    return figures


def _shards(ledger: LedgerState, learnt: frozenset[str]) -> dict[str, int]:
    shards = ledger.shards.values()
    indexed = sum(shard.indexed_seq is not None for shard in shards)
    return {
        "landed": len(shards),
        "indexed": indexed,
        "assigned": sum(shard.task is not None for shard in shards),
        "learnt": sum(shard.task in learnt for shard in shards),
        "set_aside": sum(shard.state == "set_aside" for shard in shards),
    }


def _images(ledger: LedgerState, learnt: frozenset[str]) -> dict[str, int]:
    shards = ledger.shards.values()
    return {
        "ingested": sum(shard.rows for shard in shards),
        "quarantined": sum(shard.quarantined for shard in shards),
        "held_out": sum(shard.held_out for shard in shards),
        "learnt": sum(shard.rows - shard.held_out for shard in shards if shard.task in learnt),
    }


def _queues(figures: StreamFigures, ledger: LedgerState, learnt: frozenset[str]) -> None:
    due = [ledger.shards[s] for task in ledger.due_tasks(learnt) for s in task.shard_ids]
    queues = {"index": ledger.in_state("landed"), "boundary": ledger.waiting, "learn": due}
    figures.queue_shards = {name: len(shards) for name, shards in queues.items()}
    figures.queue_age_s = {name: _oldest(shards) for name, shards in queues.items()}


def _oldest(shards: list[ShardState]) -> float:
    oldest: datetime | None = min((shard.landed_at for shard in shards), default=None)
    return 0.0 if oldest is None else max(0.0, time.time() - oldest.timestamp())
