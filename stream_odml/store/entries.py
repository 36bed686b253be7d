"""The rows that the writer adds to versions and quarantine, and what one commit of tier 1 holds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from stream_odml.store.artifacts import ArtifactRef, refs_to_json
from stream_odml.store.events import Entry, as_json
from stream_odml.store.tables import with_column


@dataclass(frozen=True)
class IngestBatch:
    """Tier 1 of one or more whole shards. Rows of a forgotten class or of a shard already indexed are left out."""

    shard_ids: Sequence[str]
    rows: pa.Table
    """From :func:`~stream_odml.store.tables.gallery_rows`."""
    quarantine: pa.Table | None = None
    """From :func:`~stream_odml.store.tables.quarantine_rows`."""
    counts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More to remember of each shard (by id), as JSON; rows, held_out, quarantined, classes are counted
    here."""


def version(version_id: str, parent: str, task: str, artifacts: str, metrics: Mapping[str, Any]) -> Entry:
    return {
        "kind": "version",
        "version_id": version_id,
        "parent": parent,
        "task": task,
        "artifacts": artifacts,
        "metrics": as_json(metrics),
    }


def refusal(version_id: str, parent: str, task: str, reason: str, metrics: Mapping[str, Any]) -> Entry:
    return {
        "kind": "refusal",
        "version_id": version_id,
        "parent": parent,
        "task": task,
        "reason": reason,
        "metrics": as_json(metrics),
    }


def artifact(version_id: str, refs: Mapping[str, ArtifactRef], reason: str) -> Entry:
    return {"kind": "artifact", "version_id": version_id, "artifacts": refs_to_json(refs), "reason": reason}


def retired(version_id: str, reason: str) -> Entry:
    return {"kind": "retired", "version_id": version_id, "reason": reason}


def stamped(quarantine: pa.Table, txn: str) -> pa.Table:
    """Quarantine rows with their transaction and the time of their commit."""
    return with_column(with_column(quarantine, "txn", txn), "time", datetime.now(UTC))
