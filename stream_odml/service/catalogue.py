"""Views of one snapshot for people: its classes, and its items in a plane.

A principal axis has no sign and two of them no fixed order, so each version's map could be mirrored or turned
at will. Here every class name has a fixed direction of the plane (from its hash), and the map is turned, by
orthogonal Procrustes (Schönemann 1966), so that its oldest classes lie as near to theirs as they can. This
depends on the store's content alone: all replicas agree, before and after a restart.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from stream_odml.ingest.reading import UNLABELLED
from stream_odml.search.exact import inner_product
from stream_odml.search.filters import Filters
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.service.backend import ClassRow, MapRequest


def count_classes(snapshot: GallerySnapshot) -> int:
    """Return the number of classes of the live items."""
    codes = snapshot.columns.array("class_name")[snapshot.rows()]
    unnamed = snapshot.columns.names["class_name"].numbers.get(UNLABELLED, -1)
    return int(np.count_nonzero(np.bincount(codes[codes != unnamed])))


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


Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
MAX_VALUES = 200
"""An attribute of more values is a name of its own for each item, and no colour."""
MAX_NAMES = 50
ANCHORS = 32
"""Oldest classes that hold the map in place; later ones come and go without turning it."""


def sample_rows(class_codes: Ints, item_ids: Sequence[str], points: int) -> Ints:
    """Return at most `points` row numbers, ascending: as many of each class as fit, chosen by hash, so that the
    same items stay in the sample while others come."""
    keys = np.fromiter((crc32(item.encode()) for item in item_ids), dtype=np.int64, count=len(item_ids))
    keys = (keys * 0x9E3779B1) % 2**32  # names that differ in a digit differ in a few bits of a CRC: mix them
    order = np.lexsort((keys, class_codes))
    codes = class_codes[order]
    starts = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]]) if len(codes) else np.zeros(0, np.int64)
    rank = np.arange(len(codes)) - np.repeat(starts, np.diff(np.r_[starts, len(codes)]))
    kept = np.lexsort((keys[order], rank))[:points]
    return np.sort(order[kept])


def project(vectors_Nd: Floats, class_names: Sequence[str], oldest: Sequence[str]) -> Floats:
    """Return coordinates float32 [N, 2] within -1..1 of `vectors_Nd`, whose classes are `class_names` [N].
    `oldest` names classes in the order they were first seen; the first 32 of them orient the map."""
    if len(vectors_Nd) == 0:
        return np.zeros((0, 2), np.float32)
    centred = vectors_Nd.astype(np.float64) - vectors_Nd.mean(axis=0, dtype=np.float64)
    _, axes = np.linalg.eigh(centred.T @ centred)
    plane = centred @ axes[:, ::-1][:, :2]
    if plane.shape[1] < 2:
        plane = np.hstack([plane, np.zeros((len(plane), 2 - plane.shape[1]))])
    plane = plane @ _turn(plane, np.asarray(class_names), oldest)
    reach = np.abs(plane).max()
    return np.asarray(plane / (reach if reach > 0 else 1.0), dtype=np.float32)


def _turn(plane: NDArray[np.float64], names: NDArray[np.str_], oldest: Sequence[str]) -> NDArray[np.float64]:
    """Return the rotation or reflection [2, 2] that brings class means nearest to their own directions."""
    present, code = np.unique(names, return_inverse=True)
    code_of = {name: at for at, name in enumerate(present.tolist())}
    agreement = np.zeros((2, 2))
    for name in [name for name in oldest if name in code_of][:ANCHORS]:
        agreement += np.outer(plane[code == code_of[name]].mean(axis=0), _direction(name))
    u, _, vt = np.linalg.svd(agreement)
    return np.asarray(u @ vt)


def _direction(name: str) -> NDArray[np.float64]:
    turn = int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big") / 2**64
    return np.array([np.cos(2 * np.pi * turn), np.sin(2 * np.pi * turn)])


def attribute_names(texts: Sequence[str]) -> list[str]:
    """Return attributes, out of the JSON of each item, that tell groups of items apart."""
    values: dict[str, set[str]] = {}
    for text in set(texts):
        for name, value in json.loads(text or "{}").items():
            known = values.setdefault(name, set())
            if len(known) <= MAX_VALUES:
                known.add(str(value))
    return sorted(name for name, known in values.items() if 2 <= len(known) <= MAX_VALUES)[:MAX_NAMES]


def values_of(texts: Sequence[str], name: str) -> tuple[list[str], list[int]]:
    """Return the values of an attribute, the most frequent first, and for each item which one it has; -1 for none."""
    found = [json.loads(text or "{}").get(name) for text in texts]
    counts = Counter(str(value) for value in found if value is not None)
    names = sorted(counts, key=lambda value: (-counts[value], value))
    code = {value: at for at, value in enumerate(names)}
    return names, [-1 if value is None else code[str(value)] for value in found]


def nearest(vectors_Nd: NDArray[np.float32], k: int) -> Ints:
    """Return the numbers [N, k] of the most similar other ones of these items, the nearest first; -1 where there is
    none with a score above 0, as among items that are compared by different parts of a head. Vectors have length 1."""
    n = len(vectors_Nd)
    scores, found = inner_product(vectors_Nd, vectors_Nd, k + 1)
    # An item comes among its own neighbours, but not first where others are its equals.
    at = np.where(found == np.arange(n)[:, None], np.inf, np.arange(k + 1)[None])
    kept = np.sort(np.argsort(at, axis=1, kind="stable")[:, :k], axis=1)
    scores, found = np.take_along_axis(scores, kept, axis=1), np.take_along_axis(found, kept, axis=1)
    return np.where(scores > 0, found, -1)


def neighbour_differs(nearest_N: Ints, class_names: Sequence[str]) -> NDArray[np.bool_]:
    """Return for each of these items whether the most similar other one of them is of another class: where a search
    errs, but for what a head's bonus turns. An item without a neighbour differs where there are others."""
    _, labels = np.unique(np.asarray(class_names), return_inverse=True)
    if len(labels) < 2:
        return np.zeros(len(labels), dtype=bool)
    return np.asarray((nearest_N < 0) | (labels[nearest_N] != labels))
