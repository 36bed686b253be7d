"""Labels put on items that are stored: what the ledger notes of them, and which are left out when they are committed.

Protects: a label lives and dies with the row that it was put on. What was erased after an indexer had read it is not
brought back by a label that is committed afterwards.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.store.select import COLUMNS, encode, select_rows
from stream_odml.store.store import Store
from stream_odml.store.tables import values

LABELS = "labels"
"""In the counts of a shard of labels: ``at``, the `seq` of the ledger that their items were read at, and ``of``, the
shards with the images of these items."""


def noted(store: Store, shard_ids: Iterable[str]) -> dict[str, Any]:
    """Return what to note of labels on items that ``store``, as it was last refreshed, has in these shards."""
    of: set[str] = set()
    for shard_id in shard_ids:
        before = images_of(store.ledger.shards[shard_id].counts)
        of |= {shard_id} if before is None else before
    return {"at": store.ledger.seq, "of": sorted(of)}


def images_of(counts: Mapping[str, Any]) -> set[str] | None:
    """Return the shards with the images of a shard of labels; None for any other."""
    labels = counts.get(LABELS)
    return None if labels is None else set(labels["of"])


def erased_since(
    store: Store, rows: pa.Table, shard_ids: Sequence[str], counts: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[str]]:
    """Return, by shard, the items of labels in ``rows`` whose own row has been erased since the label was read."""
    newest = store.ledger.newest_tombstone
    found: dict[str, list[str]] = {}
    for shard_id in shard_ids:
        read_at = counts.get(shard_id, {}).get(LABELS, {}).get("at", newest)
        if read_at < newest:
            mine = rows.filter(pc.equal(rows["shard_id"], shard_id))["item_id"]
            living = _living(store, mine, read_at)
            found[shard_id] = [item for item in mine.to_pylist() if item not in living]
    return {shard_id: items for shard_id, items in found.items() if items}


def without(rows: pa.Table, items: Mapping[str, Sequence[str]]) -> pa.Table:
    """Return the rows without these items of each shard."""
    keep = np.ones(len(rows), bool)
    shards, names = encode(rows["shard_id"])
    all_items = np.array(rows["item_id"].to_pylist(), object)
    for shard_id, gone in items.items():
        keep &= ~((shards == names.to_pylist().index(shard_id)) & np.isin(all_items, list(gone)))
    return rows.filter(pa.array(keep))


def living_rows(store: Store, items: pa.Array, columns: Sequence[str] = COLUMNS) -> pa.Table:
    """Return the rows, of these columns, that count of these items. Use it under :meth:`Store.again`."""
    parts = (rows for _, rows in store.scan(columns, pc.field("item_id").isin(items)))
    rows = pa.concat_tables([store.gallery_schema.empty_table().select(columns), *parts])
    picked = select_rows(rows.select(COLUMNS), store.ledger, store.tree, store.tree.head).picked
    return rows.take(pa.array(picked))


def _living(store: Store, items: pa.ChunkedArray, read_at: int) -> set[str]:
    """Those whose row counts, and was there when the label was read: one that came back has another image."""

    def read() -> set[str]:
        places = values(living_rows(store, items.combine_chunks()), "item_id", "shard_id")
        return {item for item, at in places if (store.ledger.shards[at].indexed_seq or 0) <= read_at}

    return store.again(read)
