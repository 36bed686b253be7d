"""What a search gives back: items with their class, cosine and the version that made their vector."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import NamedTuple

from stream_odml.search.columns import NO_TIME, Columns
from stream_odml.search.exact import Indices
from stream_odml.store.tables import FloatArray

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Hit(NamedTuple):
    """One item found; `score` is the cosine in the served space, with what the part of the embedding adds."""

    item_id: str
    class_name: str
    score: float
    version: str
    """The model version that made the stored vector."""
    attributes: Mapping[str, str]
    time: datetime | None
    shard_id: str
    row: int
    """Its row in the snapshot that answered."""
    shard_row: int = -1
    """Its row in the shard that it came with."""


def hits_of(columns: Columns, scores: FloatArray, rows: Indices) -> list[list[Hit]]:
    """Return scores and rows [nq, k] as hits; places without a row are left out."""
    found = rows >= 0
    flat = rows[found]
    of = {name: columns.array(name)[flat].tolist() for name in ("time", "row")}
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
        flat.tolist(),
        of["row"],
    )
    return [list(islice(hits, count)) for count in found.sum(axis=1).tolist()]
