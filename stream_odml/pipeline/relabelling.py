"""Labels for items that are stored: the same features land again under the class that somebody has now said.

Protects: a label changes no vector. The new row replaces the old one as any later landing does, so what sums counted
of the old row is taken out of them, and the new one is learnt with the task that its shard becomes part of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from stream_odml.ingest.kept_images import read_images
from stream_odml.ingest.reading import RawItem
from stream_odml.ingest.reasons import Reason, RowProblem, TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.pipeline.holdout import is_held_out
from stream_odml.storage.files import Files
from stream_odml.store.labels import living_rows, noted
from stream_odml.store.store import Store


@dataclass(frozen=True)
class Relabelled:
    """What a part of a table of labels gives: gallery rows, and for each the shard that had the item before."""

    rows: pa.Table
    shards: list[str]
    problems: list[RowProblem]
    noted: dict[str, Any]
    """For the ledger, see `store.labels`."""


def relabelled(store: Store, ref: ShardRef, labels: list[RawItem], held_out: float) -> Relabelled:
    """Return gallery rows of the items that `labels` name, as they are stored but for class, shard and row; and a
    problem for each that is not stored. Raises TransientReadError while the shards that landed before this one are not
    all indexed: the item may be theirs."""
    store.refresh()
    items = pa.array({label.item_id for label in labels}, pa.string())
    stored = store.again(lambda: living_rows(store, items, store.gallery_schema.names))
    place = {item_id: row for row, item_id in enumerate(stored["item_id"].to_pylist())}
    unknown = [label for label in labels if label.item_id not in place]
    mine = store.ledger.shards.get(ref.shard_id)
    others_wait = mine is None or any(s.landed_seq < mine.landed_seq for s in store.ledger.landed.values())
    if unknown and others_wait:
        raise TransientReadError(
            f"item {unknown[0].item_id!r} is not stored yet, and shards that landed before its label wait"
        )
    known = [label for label in labels if label.item_id in place]
    stored = rows = stored.take(pa.array([place[label.item_id] for label in known], pa.int64()))
    columns = {
        "class_name": pa.array([label.class_name for label in known], pa.string()),
        "shard_id": pa.array([ref.shard_id] * len(known), pa.string()),
        "row": pa.array([label.row for label in known], pa.int32()),
        "held_out": pa.array([is_held_out(label.item_id, held_out) for label in known], pa.bool_()),
        "txn": pa.array([""] * len(known), pa.string()),
    }
    for name, column in columns.items():
        rows = rows.set_column(rows.schema.get_field_index(name), rows.schema.field(name), column)
    problems = [_problem(label) for label in unknown]
    shards = stored["shard_id"].to_pylist()
    return Relabelled(rows, shards, problems, noted(store, set(shards)))


def carried_pictures(files: Files, folder: str, found: Relabelled) -> pa.Table:
    """Return the pictures that a folder has of the items, under their new class: they go and stay with the label."""
    names = found.rows["item_id"].to_pylist(), found.rows["class_name"].to_pylist()
    by_shard: dict[str, dict[str, str]] = {}
    for item, class_name, shard_id in zip(*names, found.shards, strict=True):
        by_shard.setdefault(shard_id, {})[item] = class_name
    pictures: list[tuple[str, str, bytes]] = []
    for shard_id, items in by_shard.items():
        images = read_images(files, f"{folder}/{shard_id}.parquet")
        pictures += [(item, name, images[item]) for item, name in items.items() if item in images]
    columns = list(zip(*pictures, strict=True)) or [(), (), ()]
    return pa.table(
        {
            "item_id": pa.array(columns[0], pa.string()),
            "class_name": pa.array(columns[1], pa.string()),
            "image": pa.array(columns[2], pa.binary()),
        }
    )


def _problem(label: RawItem) -> RowProblem:
    detail = f"item {label.item_id!r:.200} is not stored, so it cannot have a label; land its image or vector"
    return RowProblem(label.row, Reason.UNKNOWN_ITEM, detail)
