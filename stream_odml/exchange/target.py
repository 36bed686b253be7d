"""A target as `sync` sees it: tables of one space each, compared bucket by bucket, and a name that readers ask.

Protects: a table holds vectors of one space only; what readers ask changes from one table to the next in one step.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

BUCKETS = 64
_SAID = ("id", "class_name", "attributes", "version")
ROWS = pa.schema([*((name, pa.string()) for name in _SAID), ("bucket", pa.int32()), ("digest", pa.int64())])
"""Columns of rows at a target beside `vector`."""
Now = Literal["noted", "nothing", "damaged"]
"""What buckets of a target hold: rows as their digests say, no row, or rows that are not what their digests say."""
Digests = Mapping[int, tuple[int, int]]
"""By bucket: rows, and the sum of their digests modulo 2^64."""


@dataclass(frozen=True)
class Mark:
    """What a target says of itself: the space that readers see, and up to which commit of the root it is in step."""

    space: str
    version: str
    sequence: int
    dim: int
    stream: str = ""
    """Id of the stream; empty where an earlier release wrote it."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return dict(self.__dict__)


class SyncTarget(Protocol):
    """A store to keep in step."""

    name: str
    """What people call it, without secrets."""

    def mark(self) -> Mark | None:
        """Return what readers see, or None before the first switch."""

    def prepare(self, space: str, dim: int) -> None:
        """Make the table of a space, if it is not there."""

    def digests(self, space: str) -> Digests:
        """Return the digests of the rows in a space's table, as they were written."""

    def count(self, space: str) -> int:
        """Return how many rows a reader of a space's table gets, without reading them; 0 where it is not there."""

    def replace(self, space: str, buckets: Sequence[int], rows: pa.Table, *, now: Now = "noted") -> None:
        """Make buckets hold these rows and no others; may be ended anywhere, and is then repeated. `now`: what
        they held when they were looked at."""

    def switch(self, mark: Mark) -> None:
        """Let readers see the table of a space from now on, in one step; or note how far the one they see is."""

    def drop_others(self, space: str) -> None:
        """Delete the tables of other spaces, and what the rows of this one replaced, for good."""

    def read(self, space: str) -> Iterator[pa.Table]:
        """Return all rows of a space's table, as a reader gets them; none of what cannot be read."""

    def close(self) -> None:
        """Let go of the store."""


def bucket_of(item_id: str) -> int:
    """Return the bucket of an item."""
    return hashlib.blake2b(item_id.encode("utf-8", "surrogatepass"), digest_size=2).digest()[0] % BUCKETS


def digest_of(
    item_id: str, class_name: str, attributes: str, version: str, vector: NDArray[np.float32]
) -> int:
    """Return a number for all that a row says."""
    text = "\0".join((item_id, class_name, attributes, version)).encode("utf-8", "surrogatepass")
    data = text + b"\0" + np.ascontiguousarray(vector, "<f4").tobytes()
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little", signed=True)


def summed(buckets: NDArray[np.int64], digests: NDArray[np.int64]) -> dict[int, tuple[int, int]]:
    """Return the digests of buckets from those of rows."""
    found = {}
    for bucket in np.unique(buckets).tolist():
        mine = digests[buckets == bucket]
        found[int(bucket)] = (len(mine), int(mine.astype(np.uint64).sum(dtype=np.uint64)))
    return found


_SPACE = re.compile(r"(?:whole|known)[0-9a-f]{11,12}|full[0-9a-f]{12}")


def is_space(text: str) -> bool:
    """Return whether this names a space, whole or cut as in a table's name: what sync may delete is called so."""
    return _SPACE.fullmatch(text) is not None


def table_name(name: str, space: str) -> str:
    """Return the name of a space's table."""
    return f"{name}__{space[:16]}"


def is_table_of(name: str, table: str) -> bool:
    """Return whether this is a table that sync made for a space under `name`, and nobody's own beside it."""
    return table.startswith(table_name(name, "")) and is_space(table.removeprefix(table_name(name, "")))


def difference(rows: pa.Table, there: Mapping[str, int], damaged: bool = False) -> tuple[pa.Table, list[str]]:
    """Return those of the rows that a table, with these digests by id, lacks or has otherwise, or all where digests say
    nothing (`damaged`); and the ids that it has and that are in none of the rows."""
    ids, digests = rows["id"].to_pylist(), rows["digest"].to_pylist()
    pairs = enumerate(zip(ids, digests, strict=True))
    new = [at for at, (one, digest) in pairs if damaged or there.get(one) != digest]
    return rows.take(pa.array(new, pa.int64())), list(there.keys() - set(ids))


def read_digests(rows: pa.Table) -> list[int]:
    """Return the digests of rows as they were read, computed anew."""
    vectors = rows["vector"].combine_chunks()
    values = vectors.flatten().to_numpy(zero_copy_only=False).reshape(len(rows), -1) if len(rows) else []
    columns = (rows[name].to_pylist() for name in _SAID)
    return list(map(digest_of, *columns, values))
