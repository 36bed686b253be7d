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
"""In the counts of a shard of labels: `at`, the `seq` of the ledger that their items were read at, and `of`, the
shards with the images of these items."""


def noted(store: Store, shard_ids: Iterable[str]) -> dict[str, Any]:
    """Return what to note of labels on items that `store`, as it was last refreshed, has in these shards."""
    of: set[str] = set()
    for shard_id in shard_ids:
        before = images_of(store.ledger.shards[shard_id].counts)
        of |= {shard_id} if before is None else before
    return {"at": store.ledger.seq, "of": sorted(of)}


def images_of(counts: Mapping[str, Any]) -> set[str] | None:
    """Return the shards with the images of a shard of labels; None for any other."""
    labels = counts.get(LABELS)
    return None if labels is None else set(labels["of"])


def without_erased(store: Store, rows: pa.Table, counts: Mapping[str, Mapping[str, Any]]) -> pa.Table:
    """Return rows without those of labels whose item's own row has been erased since the label was read. `counts`:
    those of each shard, by its id."""
    if not len(rows) or not any(LABELS in counted for counted in counts.values()):
        return rows
    newest, keep = store.ledger.newest_tombstone, np.ones(len(rows), bool)
    shards, names = encode(rows["shard_id"])
    for number, shard_id in enumerate(names.to_pylist()):
        read_at = counts.get(shard_id, {}).get(LABELS, {}).get("at", newest)
        if read_at < newest:
            items = rows["item_id"].filter(pa.array(shards == number))
            living = _living(store, items, read_at)
            keep[shards == number] = [item in living for item in items.to_pylist()]
    return rows.filter(pa.array(keep))


def living_rows(store: Store, items: pa.Array, columns: Sequence[str] = COLUMNS) -> pa.Table:
    """Return the rows, of these columns, that count of these items. Use it under `Store.again`."""
    parts = (rows for _, rows in store.scan(columns, pc.field("item_id").isin(items)))
    rows = pa.concat_tables([store.gallery_schema.empty_table().select(columns), *parts])
    picked = select_rows(rows.select(COLUMNS), store.ledger, store.tree, store.tree.head).picked
    return rows.take(pa.array(picked))


def _living(store: Store, items: pa.ChunkedArray, read_at: int) -> set[str]:
    """Return those whose row counts, and was there when the label was read: one that came back has another image."""

    def read() -> set[str]:
        places = values(living_rows(store, items.combine_chunks()), "item_id", "shard_id")
        return {item for item, at in places if (store.ledger.shards[at].indexed_seq or 0) <= read_at}

    return store.again(read)
