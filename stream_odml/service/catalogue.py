"""Views of one snapshot for people: its classes, and its items in a plane."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.ingest.reading import UNLABELLED
from stream_odml.search.filters import Filters
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.service.backend import ClassRow, MapRequest
from stream_odml.service.projection import (
    attribute_names,
    nearest,
    neighbour_differs,
    project,
    sample_rows,
    values_of,
)


def count_classes(snapshot: GallerySnapshot) -> int:
    """Return the number of classes of the live items."""
    codes = snapshot.columns.array("class_name")
    alive = np.bincount(codes, minlength=1) - np.bincount(
        codes[snapshot.dead], minlength=int(codes.max(initial=0)) + 1
    )
    unnamed = snapshot.columns.names["class_name"].numbers.get(UNLABELLED)
    if unnamed is not None and unnamed < len(alive):
        alive[unnamed] = 0
    return int(np.count_nonzero(alive))


def class_rows(snapshot: GallerySnapshot) -> Sequence[ClassRow]:
    """Return every class of the live items, newest first; first seen when the earliest of their shards landed."""
    rows = snapshot.rows()
    codes = snapshot.columns.array("class_name")[rows]
    present, sample, counts = np.unique(codes, return_index=True, return_counts=True)
    landed, learnt = _shard_facts(snapshot)
    shards = snapshot.columns.array("shard_id")[rows]
    size = int(present.max()) + 1 if len(present) else 0
    first, known = np.full(size, np.inf), np.zeros(size, dtype=bool)
    np.minimum.at(first, codes, landed[shards])
    np.logical_or.at(known, codes, learnt[shards])
    names = snapshot.columns.names["class_name"].names
    found = [
        ClassRow(
            names[code],
            int(count),
            datetime.fromtimestamp(float(first[code]), UTC),
            snapshot.columns.item_ids[int(rows[at])],
            bool(known[code]),
        )
        for code, at, count in zip(present.tolist(), sample.tolist(), counts.tolist(), strict=True)
        if names[code] != UNLABELLED
    ]
    return sorted(found, key=lambda row: (row.first_seen or datetime.min, row.name), reverse=True)


def _shard_facts(snapshot: GallerySnapshot) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return for each shard code: when it landed (seconds), and whether the head's path has learnt its task."""
    shards = [snapshot.ledger.shards[name] for name in list(snapshot.columns.names["shard_id"].names)]
    learnt = snapshot.tree.learnt(snapshot.version)
    landed = np.array([shard.landed_at.timestamp() for shard in shards], dtype=np.float64)
    return landed, np.array([shard.task in learnt for shard in shards], dtype=bool)


def plane(snapshot: GallerySnapshot, oldest: Sequence[str], asked: MapRequest) -> dict[str, Any]:
    """Return a sample of live items in the plane, x and y within -1..1, which the `oldest` classes orient.

    Lists have an entry an item; its class is a number of `classes`, its value of the attribute that is asked for one of
    `values`, its neighbours are numbers of items, -1 for none. `attributes`: those that tell groups of items apart.
    """
    only = None if asked.class_name is None else Filters(frozenset({asked.class_name}))
    rows = snapshot.rows(only)
    ids = snapshot.columns.item_ids.column.to_pylist()
    kept = rows[
        sample_rows(snapshot.columns.array("class_name")[rows], [ids[row] for row in rows], asked.points)
    ]
    names = [snapshot.columns.name("class_name", int(row)) for row in kept]
    vectors = snapshot.vectors(kept)
    texts = snapshot.columns.attributes.take(kept)
    classes, codes = np.unique(np.array(names, object), return_inverse=True)
    x, y = project(vectors, names, oldest).T.tolist()
    found: dict[str, Any] = {
        "version": snapshot.version,
        "sequence": snapshot.sequence,
        "classes": classes.tolist(),
        "ids": [ids[row] for row in kept],
        "class": codes.tolist(),
        "x": [round(at, 4) for at in x],
        "y": [round(at, 4) for at in y],
        "attributes": attribute_names(texts),
    }
    if asked.attribute is not None:
        found["values"], found["value"] = values_of(texts, asked.attribute)
    near = nearest(vectors, max(asked.neighbours, 1)) if asked.errors or asked.neighbours else None
    if near is not None and asked.errors:
        found["differs"] = neighbour_differs(near[:, 0], names).tolist()
    if near is not None and asked.neighbours:
        found["neighbours"] = near.tolist()
    return found
