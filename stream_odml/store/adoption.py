"""One commit of rows that came out of another store: they land and are indexed at once, as a shard of their own.

Protects: a block of a source is taken over whole or not at all, once, whoever dies at whatever line: its gallery rows
come first, and the ledger's commit, which names both its landing and its transaction, makes them visible.
"""

from __future__ import annotations

import uuid

from stream_odml.storage.crashpoints import crash_point
from stream_odml.store import entries, events
from stream_odml.store.checks import counted, fitting
from stream_odml.store.entries import IngestBatch
from stream_odml.store.events import Landed
from stream_odml.store.fence import Fence
from stream_odml.store.tables import QUARANTINE, with_column


def adopt(fence: Fence, shard: Landed, batch: IngestBatch) -> bool:
    """Commit a shard with its rows; False for one that is there already. Raises ValueError as `commit_ingest` does."""
    with fence.exclusive() as store:
        if shard.shard_id in store.ledger.shards:
            return False
        rows = fitting(store, batch.rows)
        quarantine = batch.quarantine if batch.quarantine is not None else QUARANTINE.empty_table()
        counts = counted([shard.shard_id], rows, quarantine, batch.counts)
        txn = f"i{uuid.uuid4().hex[:16]}.{fence.epoch}"
        crash_point("adopt.before")
        fence.append("gallery", with_column(rows, "txn", txn))
        crash_point("adopt.after_gallery")
        fence.append("quarantine", entries.stamped(quarantine, txn))
        crash_point("adopt.after_quarantine")
        ledger = [events.landed(shard), events.indexed(shard.shard_id, txn, counts[shard.shard_id])]
        fence.append_entries("ledger", ledger)
        crash_point("adopt.after_ledger")
        return True
