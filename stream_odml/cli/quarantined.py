"""The way back for refused rows: taken from their shards as they were written, to be fixed and landed again."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

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
        *((name, pa.string()) for name in ("class_name", "item_id", "attributes", "time", "path")),
        *((name, QUARANTINE.field(name).type) for name in _REFUSAL),
    ]
)
"""The columns of a shard, and five that say where a row came from and what is wrong (landing ignores them)."""


def export_rows(store: Store, path: Path) -> tuple[int, list[str]]:
    """Write every quarantined row to a Parquet file (for none, no file is made); return their number, and a line for
    each shard that cannot be read. A file that was refused as a whole has no rows to export: fix the file itself and
    land it again. A duplicate id is exported without its id, so that it lands as an item of its own."""
    bad: dict[str, dict[int, dict[str, Any]]] = {}
    for row in store.quarantine_rows().to_pylist():
        bad.setdefault(row["shard_id"], {})[row["row"]] = row
    rows: list[dict[str, Any]] = []
    unread: list[str] = []
    for shard_id, wanted in bad.items():
        if -1 in wanted:
            unread.append(f"{store.ledger.shards[shard_id].uri}: refused as a whole, {wanted[-1]['reason']}")
            continue
        ref = ShardRef.from_dict(dict(store.ledger.shards[shard_id].detail))
        try:
            rows += [_row(raw, wanted[raw.row]) for raw in raw_rows(ref) if raw.row in wanted]
        except (BadShard, TransientReadError) as error:
            unread.append(f"{ref.uri}: {error}")
    if rows:
        write_named(path, partial(pq.write_table, pa.Table.from_pylist(rows, schema=SCHEMA)))
    return len(rows), unread


def _row(raw: RawRow, bad: dict[str, Any]) -> dict[str, Any]:
    duplicate = bad["reason"] == "duplicate_id"
    return {
        "image": raw.image,
        "class_name": _text(named_label(raw.label, raw.names or ())),
        "item_id": None if duplicate else _text(raw.item_id),
        "attributes": raw.attributes
        if isinstance(raw.attributes, str | None)
        else json.dumps(raw.attributes, default=str),
        "time": _text(raw.time),
        "path": raw.path,
        **{name: bad[name] for name in _REFUSAL},
    }


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return None if value is None else str(value)
