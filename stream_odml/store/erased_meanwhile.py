"""What an indexer or a stage read before something was erased, and hands over for a commit afterwards.

Protects: a round that has deleted what was erased has deleted it for good. No commit of work that was under way brings
back a row of it, a picture, or what a refusal says of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.store.checks import accepted
from stream_odml.store.erased_refusals import refusals_to_delete
from stream_odml.store.labels import living_rows, without_erased
from stream_odml.store.pictures import drop_pictures
from stream_odml.store.store import Store
from stream_odml.store.tables import IngestBatch, values


def indexed_without(store: Store, batch: IngestBatch, pending: Sequence[str]) -> IngestBatch:
    """Return what is to be committed of the `pending` shards; delete pictures that the indexer left of other items."""

    def mine(rows: pa.Table) -> pa.Table:
        return rows.filter(pc.is_in(rows["shard_id"], value_set=pa.array(pending, pa.string())))

    rows = without_erased(store, mine(accepted(store, batch.rows)), batch.counts)
    for shard_id in pending if store.ledger.tombstones else ():
        before, after = (
            set(table.filter(pc.equal(table["shard_id"], shard_id))["item_id"].to_pylist())
            for table in (batch.rows, rows)
        )
        if before - after:
            drop_pictures(store.files, shard_id, sorted(before - after))
    quarantine = refusals_without(store, mine(batch.quarantine))
    return replace(batch, shard_ids=pending, rows=rows, quarantine=quarantine)


def refusals_without(store: Store, quarantine: pa.Table) -> pa.Table:
    """Return quarantine rows without those that name what was erased, or that a stage left out of rows which do not
    live any more."""
    if not (store.ledger.tombstones and len(quarantine)):
        return quarantine

    def living() -> set[tuple[str, int]]:
        return store.again(lambda: _living_places(store, quarantine["shard_id"].unique()))

    return quarantine.filter(pa.array(~refusals_to_delete(quarantine, store.ledger, living)))


def _living_places(store: Store, shard_ids: pa.Array) -> set[tuple[str, int]]:
    of_shards = [rows for _, rows in store.scan(["item_id"], pc.field("shard_id").isin(shard_ids))]
    if not of_shards:
        return set()
    # Of an item that came again in another shard, the row there is needed to know that this one was replaced.
    return set(values(living_rows(store, pa.concat_tables(of_shards)["item_id"].unique()), "shard_id", "row"))
