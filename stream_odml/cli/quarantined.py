"""The way back for refused rows: taken from their shards as they were written, to be fixed and landed again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.ingest.arrow_rows import named_label
from stream_odml.ingest.rawrow import RawRow
from stream_odml.ingest.reading import raw_rows
from stream_odml.ingest.reasons import BadShard, TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.storage.atomic import write_named
from stream_odml.store.store import Store
from stream_odml.store.tables import QUARANTINE

_REFUSAL = ("shard_id", "row", "reason", "detail")
SCHEMA = pa.schema(
    [
        ("image", pa.binary()),
        ("vector", pa.list_(pa.float32())),
        *((name, pa.string()) for name in ("class_name", "item_id", "attributes", "time", "path")),
        *((name, QUARANTINE.field(name).type) for name in _REFUSAL),
    ]
)
"""The columns of a shard, and five that say where a row came from and what is wrong (landing ignores them). Which of
image and vector no row has is left out, as landing reads the first that is there, and labels where neither is."""


def export_rows(store: Store, path: Path) -> tuple[int, list[str]]:
    """Write every quarantined row to a Parquet file (for none, no file is made); return their number, and a line for
    each shard that cannot be read. A file that was refused as a whole has no rows to export: fix the file itself and
    land it again. A duplicate id is exported without its id, so that it lands as an item of its own."""
    bad: dict[str, dict[int, dict[str, Any]]] = {}
    for row in store.quarantine_rows().to_pylist():
        bad.setdefault(row["shard_id"], {})[row["row"]] = row
    rows: list[tuple[RawRow, dict[str, Any]]] = []
    unread: list[str] = []
    for shard_id, wanted in bad.items():
        if -1 in wanted:
            unread.append(f"{store.ledger.shards[shard_id].uri}: refused as a whole, {wanted[-1]['reason']}")
            continue
        ref = ShardRef.from_dict(dict(store.ledger.shards[shard_id].detail))
        try:
            rows += [(raw, wanted[raw.row]) for raw in raw_rows(ref) if raw.row in wanted]
        except (BadShard, TransientReadError) as error:
            unread.append(f"{ref.uri}: {error}")
    if rows:
        write_named(path, partial(pq.write_table, _table(rows)))
    return len(rows), unread


def _table(rows: list[tuple[RawRow, dict[str, Any]]]) -> pa.Table:
    table = pa.Table.from_pylist([_row(raw, bad) for raw, bad in rows], schema=SCHEMA)
    has_vectors = any(raw.vector is not None for raw, _ in rows)
    without = [] if has_vectors else ["vector"]
    if all(raw.image is None and (has_vectors or raw.is_label) for raw, _ in rows):
        without.append("image")
    return table.drop_columns(without)


def _row(raw: RawRow, bad: dict[str, Any]) -> dict[str, Any]:
    # A label needs its id; an image or a vector gets another one where it lands again.
    duplicate = bad["reason"] == "duplicate_id" and not raw.is_label
    return {
        "image": raw.image,
        "vector": None if raw.vector is None else np.frombuffer(raw.vector, "<f4"),
        "class_name": _text(named_label(raw.label, raw.names or ())),
        "item_id": None if duplicate else _text(raw.item_id),
        "attributes": _text(raw.attributes)
        if isinstance(raw.attributes, str | None)
        else json.dumps(raw.attributes, default=str),
        "time": _text(raw.time),
        "path": _text(raw.path),
        **{name: bad[name] for name in _REFUSAL},
    }


def _text(value: object) -> str | None:
    """Return text that a table can hold: what is not UTF-8, as a file's name need not be, is escaped."""
    if isinstance(value, bytes):
        return value.decode(errors="backslashreplace")
    return None if value is None else str(value).encode(errors="backslashreplace").decode()
