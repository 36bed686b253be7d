"""The rows that the writer adds to ledger and versions: one function a kind, so the columns are filled in one
place."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol

import pyarrow as pa

from stream_odml.store.artifacts import ArtifactRef, refs_to_json
from stream_odml.store.tables import with_column

Entry = Mapping[str, Any]


class Landed(Protocol):
    """What the ledger needs of a shard that landed."""

    @property
    def shard_id(self) -> str: ...

    def to_dict(self) -> dict[str, Any]:
        """All that is to be remembered, as JSON types; name, uri, format and size_bytes among it."""
        ...


@dataclass(frozen=True)
class IngestBatch:
    """Tier 1 of one or more whole shards. Rows of a forgotten class or of a shard already indexed are left
    out."""

    shard_ids: Sequence[str]
    rows: pa.Table
    """From :func:`~stream_odml.store.tables.gallery_rows`."""
    quarantine: pa.Table | None = None
    """From :func:`~stream_odml.store.tables.quarantine_rows`."""
    counts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More to remember of each shard (by id), as JSON; rows, held_out, quarantined, classes are counted
    here."""


def landed(ref: Landed) -> Entry:
    return {"kind": "landed", "subject": ref.shard_id, "detail": _json(ref.to_dict())}


def indexed(shard_id: str, txn: str, counts: Mapping[str, Any]) -> Entry:
    return {"kind": "indexed", "subject": shard_id, "txn": txn, "detail": _json(counts)}


def set_aside(shard_id: str, reason: str, final: bool) -> Entry:
    return {"kind": "set_aside", "subject": shard_id, "detail": _json({"reason": reason, "final": final})}


def assigned(shard_id: str, task: str, reason: str, detail: Mapping[str, Any]) -> Entry:
    text = _json({"reason": reason, "detail": dict(detail)})
    return {"kind": "assigned", "subject": shard_id, "task": task, "detail": text}


def attempt(version_id: str, task: str, parent: str) -> Entry:
    return {"kind": "attempt", "subject": version_id, "task": task, "detail": _json({"parent": parent})}


def learnt(version_id: str, task: str) -> Entry:
    return {"kind": "learnt", "subject": version_id, "task": task}


def refused(version_id: str, task: str, reason: str) -> Entry:
    return {"kind": "refused", "subject": version_id, "task": task, "detail": _json({"reason": reason})}


def skipped(task: str, reason: str) -> Entry:
    return {"kind": "skipped", "subject": task, "task": task, "detail": _json({"reason": reason})}


def relearn(task: str, anyway: bool) -> Entry:
    return {"kind": "relearn", "subject": task, "task": task, "detail": _json({"anyway": anyway})}


def forget(kind: str, name: str, items: int | None) -> Entry:
    if kind not in ("class", "item", "shard"):
        raise ValueError(f"cannot forget a {kind!r}; name a class, an item or a shard")
    return {"kind": "forget", "subject": name, "detail": _json({"of": kind, "items": items})}


def version(version_id: str, parent: str, task: str, artifacts: str, metrics: Mapping[str, Any]) -> Entry:
    return {
        "kind": "version",
        "version_id": version_id,
        "parent": parent,
        "task": task,
        "artifacts": artifacts,
        "metrics": _json(metrics),
    }


def refusal(version_id: str, parent: str, task: str, reason: str, metrics: Mapping[str, Any]) -> Entry:
    return {
        "kind": "refusal",
        "version_id": version_id,
        "parent": parent,
        "task": task,
        "reason": reason,
        "metrics": _json(metrics),
    }


def evaluation(version_id: str, metrics: Mapping[str, Any]) -> Entry:
    return {"kind": "evaluation", "version_id": version_id, "metrics": _json(metrics)}


def artifact(version_id: str, refs: Mapping[str, ArtifactRef], reason: str) -> Entry:
    return {"kind": "artifact", "version_id": version_id, "artifacts": refs_to_json(refs), "reason": reason}


def retired(version_id: str, reason: str) -> Entry:
    return {"kind": "retired", "version_id": version_id, "reason": reason}


def stamped(quarantine: pa.Table, txn: str) -> pa.Table:
    """Quarantine rows with their transaction and the time of their commit."""
    return with_column(with_column(quarantine, "txn", txn), "time", datetime.now(UTC))


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True, default=str)
