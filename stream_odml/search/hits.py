"""What a search gives back: items with their class, cosine and the version that made their vector."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from stream_odml.search.columns import NO_TIME, Columns
from stream_odml.search.exact import Indices, Mask
from stream_odml.store.tables import FloatArray

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
WIDEN_FACTOR = 8


class Hit(NamedTuple):
    """One item found; ``score`` is the cosine in the served space, with what the part of the embedding adds."""

    item_id: str
    class_name: str
    score: float
    version: str
    """The model version that made the stored vector."""
    attributes: Mapping[str, str]
    time: datetime | None
    shard_id: str
    held_out: bool
    row: int
    """Its row in the snapshot that answered."""
    shard_row: int = -1
    """Its row in the shard that it came with."""


class Nearest(Protocol):
    """What grouping needs of a snapshot."""

    @property
    def columns(self) -> Columns: ...

    def nearest(
        self, queries: FloatArray, k: int, mask: Mask | None = None
    ) -> tuple[FloatArray, Indices]: ...


def hits_of(columns: Columns, scores: FloatArray, rows: Indices) -> list[list[Hit]]:
    """Return scores and rows [nq, k] as hits; places without a row are left out."""
    found = rows >= 0
    flat = rows[found]
    of = {name: columns.array(name)[flat].tolist() for name in ("time", "held_out", "row")}
    for name in ("class_name", "version", "shard_id"):
        names = columns.names[name].names
        of[name] = [names[code] for code in columns.array(name)[flat].tolist()]
    hits = map(
        Hit,
        columns.item_ids.take(flat),
        of["class_name"],
        scores[found].tolist(),
        of["version"],
        [{} if text == "{}" else json.loads(text) for text in columns.attributes.take(flat)],
        [None if time == NO_TIME else EPOCH + timedelta(microseconds=time) for time in of["time"]],
        of["shard_id"],
        of["held_out"],
        flat.tolist(),
        of["row"],
    )
    return [list(islice(hits, count)) for count in found.sum(axis=1).tolist()]


def grouped(
    source: Nearest, queries: FloatArray, groups: int, size: int, mask: Mask | None
) -> list[list[Hit]]:
    """Return the ``size`` best items of each of the ``groups`` nearest classes, looking wider until there
    are so many."""
    columns = source.columns
    classes = columns.array("class_name")
    wide = min(columns.n, groups * size * WIDEN_FACTOR)
    while True:
        scores, rows = source.nearest(queries, max(1, wide), mask)
        kept = [_kept(classes, row, groups, size) for row in rows]
        if wide >= columns.n or all(full for _, full in kept):
            break
        wide = min(columns.n, wide * WIDEN_FACTOR)
    chosen = [(scores[i][keep], rows[i][keep]) for i, (keep, _) in enumerate(kept)]
    return [hits_of(columns, s[None], r[None])[0] for s, r in chosen]


def _kept(classes: Indices, rows: Indices, groups: int, size: int) -> tuple[Indices, bool]:
    """Places to keep, and whether more rows could change nothing: every group that is kept is full."""
    counts: dict[int, int] = {}
    keep = []
    for place, row in enumerate(rows.tolist()):
        if row < 0:
            break
        name = int(classes[row])
        if name not in counts and len(counts) == groups:
            continue
        if counts.setdefault(name, 0) < size:
            counts[name] += 1
            keep.append(place)
    full = len(counts) == groups and all(count == size for count in counts.values())
    return np.array(keep, dtype=np.int64), full
