"""Labels for items that are stored: the same features land again under the class that somebody has now said.

Protects: a label changes no vector. The new row replaces the old one as any later landing does, so what sums counted
of the old row is taken out of them, and the new one is learnt with the task that its shard becomes part of.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.ingest.reading import RawItem
from stream_odml.ingest.reasons import Reason, RowProblem, TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.pipeline.holdout import is_held_out
from stream_odml.store.select import COLUMNS, select_rows
from stream_odml.store.store import Store


def relabelled(
    store: Store, ref: ShardRef, labels: list[RawItem], held_out: float
) -> tuple[pa.Table, list[RowProblem]]:
    """Return gallery rows of the items that `labels` name, as they are stored but for class, shard and row; and a
    problem for each that is not stored.

    Raises TransientReadError while the shards that landed before this one are not all indexed: the item may be theirs.
    """
    store.refresh()
    stored = store.again(lambda: stored_rows(store, [label.item_id for label in labels]))
    place = {item_id: row for row, item_id in enumerate(stored["item_id"].to_pylist())}
    unknown = [label for label in labels if label.item_id not in place]
    if unknown and _others_wait(store, ref):
        raise TransientReadError(
            f"item {unknown[0].item_id!r} is not stored yet, and shards that landed before its label wait"
        )
    known = [label for label in labels if label.item_id in place]
    rows = stored.take(pa.array([place[label.item_id] for label in known], pa.int64()))
    columns = {
        "class_name": pa.array([label.class_name for label in known], pa.string()),
        "shard_id": pa.array([ref.shard_id] * len(known), pa.string()),
        "row": pa.array([label.row for label in known], pa.int32()),
        "held_out": pa.array([is_held_out(label.item_id, held_out) for label in known], pa.bool_()),
        "txn": pa.array([""] * len(known), pa.string()),
    }
    for name, column in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    return rows, [_problem(label) for label in unknown]


def stored_rows(store: Store, item_ids: list[str]) -> pa.Table:
    """Return the rows by which these items are found, with vectors as stored. FileNotFoundError as `Store.scan`."""
    named = pc.field("item_id").isin(pa.array(sorted(set(item_ids)), pa.string()))
    parts = [rows for _, rows in store.scan(None, named)]
    if not parts:
        return store.gallery_schema.empty_table()
    rows = pa.concat_tables(parts)
    picked = select_rows(rows.select(COLUMNS), store.ledger, store.tree, store.tree.head).picked
    return rows.take(pa.array(picked))


def _others_wait(store: Store, ref: ShardRef) -> bool:
    mine = store.ledger.shards.get(ref.shard_id)
    return mine is None or any(s.landed_seq < mine.landed_seq for s in store.ledger.landed.values())


def _problem(label: RawItem) -> RowProblem:
    detail = f"item {label.item_id!r:.200} is not stored, so it cannot have a label; land its image or vector"
    return RowProblem(label.row, Reason.UNKNOWN_ITEM, detail)
