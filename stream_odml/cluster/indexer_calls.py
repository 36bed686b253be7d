"""Where the indexers are found and what they answer. Apart from them: a driver that restarts need not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from stream_odml.cluster.runtime import NAMESPACE


@dataclass(frozen=True)
class ShardCounts:
    """What the ledger keeps of an indexed shard."""

    shard_id: str
    rows: int
    held_out: int
    quarantined: int
    classes: dict[str, int]
    """Good images of each class."""
    trainable: dict[str, int]
    """Those of them that are not held out."""
    reasons: dict[str, int]


@dataclass(frozen=True)
class IndexedBatch:
    """Rows of several shards, ready for one transaction; ``retry`` names shards whose bytes were out of reach."""

    version: str
    rows: pa.Table
    quarantine: pa.Table
    counts: list[ShardCounts]
    retry: dict[str, str]
    rest: tuple[str, ...] = ()
    """Shards that were not begun, because those before them filled the batch."""


def indexer_handles(count: int) -> list[Any]:
    """Handles of the running indexers. Raises ValueError when there are none."""
    return [ray.get_actor(indexer_name(i), namespace=NAMESPACE) for i in range(count)]


def indexer_name(i: int) -> str:
    """The actor's name."""
    return f"Indexer-{i}"
