"""The oracle of the fault benchmark for a test that knows its items by heart: class by item id, and how many shards."""

from __future__ import annotations

from collections.abc import Mapping

from benchmarks.faults import oracle
from benchmarks.faults.truth import Truth
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.store import Store


def violations(store: Store, landed: Mapping[str, str], learnt_shards: int | None = None) -> list[str]:
    """Every broken promise in words. ``landed``: class by item id; ``learnt_shards``: how many must be learnt."""
    found = oracle.violations(store, Truth(tried=dict(landed)), learnt=learnt_shards is not None)
    snapshot = GallerySnapshot.load(store)
    served = {snapshot.item(int(row)).item_id for row in snapshot.rows()}
    lost = [f"item {item} is lost" for item in sorted(landed.keys() - served)]
    learnt = sum(len(store.ledger.tasks[task].shard_ids) for task in store.tree.learnt())
    if learnt_shards not in (None, learnt):
        lost.append(f"{learnt} shards are learnt, expected {learnt_shards}")
    return [violation.text for violation in found] + lost
