"""Vectors that `export` and `sync` wrote: they are of a served version's space, and no features of an item.

Protects: no shard brings them in. A stream's head would be applied to them a second time, which looks like vectors of
any other kind and ranks by nothing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from stream_odml.ingest.reasons import BadShard, Reason

KEY = "stream_odml"
"""Of a table's metadata, and name of an array, that says of which stream and version the vectors are."""
_SYNCED = frozenset({"version", "bucket", "digest"})
"""Columns of the rows that `sync` writes, which it does not mark in every store."""


class Origin(NamedTuple):
    """The stream and version in whose space vectors are; empty where that is not said."""

    stream: str = ""
    version: str = ""

    @property
    def words(self) -> str:
        """What vectors of it are called."""
        if not self.version:
            return "vectors of a served version, as `sync` wrote them"
        return f"vectors of version {self.version} of stream {self.stream}, as `export` or `sync` wrote them"


def origin_of(names: Iterable[str], metadata: Mapping[bytes, bytes] | None = None) -> Origin | None:
    """Return of whose space a table's vectors are, by its columns and metadata; None for vectors of anything else."""
    said = (metadata or {}).get(KEY.encode())
    if said is not None:
        return origin_in(said)
    return Origin() if _SYNCED.issubset(names) else None


def origin_in(said: str | bytes) -> Origin:
    """Return what a mark says, which is JSON; one that cannot be read is of no known stream."""
    try:
        found = json.loads(said)
        return Origin(str(found["stream"])[:80], str(found["version"])[:80])
    except (ValueError, KeyError, TypeError, RecursionError):
        return Origin()


def refuse_served(origin: Origin | None) -> None:
    """Raise BadShard for vectors of a served version."""
    if origin is not None:
        raise BadShard(
            Reason.SERVED_VECTORS,
            f"these are {origin.words}, and no features: land the features or images that they were made of; "
            "for classes alone, leave the column of vectors out",
        )
