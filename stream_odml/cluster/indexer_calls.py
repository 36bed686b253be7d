"""Where the indexers are found and what they answer. Apart from them: a driver that restarts need not load torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray

from stream_odml.cluster.runtime import NAMESPACE


@dataclass(frozen=True)
class IndexedBatch:
    """Rows of several shards, ready for one transaction; ``retry`` names shards whose bytes were unreachable."""

    version: str
    rows: pa.Table
    quarantine: pa.Table
    counts: dict[str, dict[str, Any]]
    """For each shard what the ledger keeps beside what the writer counts: good images of each class that are not held
    out (`trainable`), and `reasons` of those in quarantine."""
    retry: dict[str, str]
    rest: tuple[str, ...] = ()
    """Shards that were not begun, because those before them filled the batch."""


def indexer_handles(count: int) -> list[Any]:
    """Return handles of the running indexers. Raises ValueError when there are none."""
    return [ray.get_actor(indexer_name(i), namespace=NAMESPACE) for i in range(count)]


def indexer_name(i: int) -> str:
    """Return the actor's name."""
    return f"Indexer-{i}"
