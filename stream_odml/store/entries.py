"""The rows that the writer adds to versions and quarantine, and what one commit of tier 1 holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from stream_odml.store.events import Entry
from stream_odml.store.tables import QUARANTINE, with_column


@dataclass(frozen=True)
class IngestBatch:
    """Tier 1 of one or more whole shards. Rows of a forgotten class or of a shard already indexed are left out."""

    shard_ids: Sequence[str]
    rows: pa.Table
    """From :func:`~stream_odml.store.tables.gallery_rows`."""
    quarantine: pa.Table = field(default_factory=QUARANTINE.empty_table)
    """From :func:`~stream_odml.store.tables.quarantine_rows`."""
    counts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More to remember of each shard (by id), as JSON; rows, held_out, quarantined, classes are counted here."""


def version_entry(kind: str, version_id: str, **columns: str) -> Entry:
    """Return a row of `versions` about this version."""
    return {"kind": kind, "version_id": version_id, **columns}


def stamped(quarantine: pa.Table, txn: str) -> pa.Table:
    """Quarantine rows with their transaction and the time of their commit."""
    return with_column(with_column(quarantine, "txn", txn), "time", datetime.now(UTC))
