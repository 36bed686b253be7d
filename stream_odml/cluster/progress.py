"""The words that driver, trainer and indexer exchange: plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field

from stream_odml.stream.shard import ShardRef


@dataclass(frozen=True)
class StageOrder:
    """One stage to learn. ``version_id`` names the attempt; ``shards`` are in landing order."""

    task: str
    version_id: str
    parent: str
    depth: int
    shards: tuple[ShardRef, ...]
    handed_at: float
    anchor_scale: float = 1.0


@dataclass(frozen=True)
class StageResult:
    """What a finished stage hands to the driver: file references only.

    ``artifacts`` maps a name to its reference in the store, ``rows`` are the Parquet parts (store paths) of
    the task's items embedded by the new model, ``metrics`` goes into the version's row.
    """

    version_id: str
    parent: str
    task: str
    artifacts: dict[str, dict[str, object]]
    rows: tuple[str, ...]
    metrics: dict[str, float] = field(default_factory=dict)
