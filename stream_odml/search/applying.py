"""Drift maps applied to many vectors, where they lie and block by block.

Protects: beside the vectors nothing is held that grows with them, nor with the number of versions that made them.
"""

import numpy as np
import pyarrow as pa

from stream_odml.learn.drift import IdentityMap
from stream_odml.store.mapping import Mapper
from stream_odml.store.select import encode
from stream_odml.store.tables import FloatArray
from stream_odml.store.versions import VersionTree

BLOCK = 8192
"""Rows mapped at a time."""


def map_in_place(
    mapper: Mapper, tree: VersionTree, versions: pa.ChunkedArray, end: str, vectors: FloatArray
) -> None:
    """Map `vectors` float32 [n, d], made by these `versions` [n], into the space of `end`."""
    if not len(vectors):
        return
    codes, names = encode(versions)
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    parts = np.split(np.argsort(codes, kind="stable"), ends[:-1])
    rows_of = dict(zip(names.to_pylist(), parts, strict=True))
    for name, drift in mapper.into(tree, rows_of, end):
        if isinstance(drift, IdentityMap):
            continue
        for start in range(0, len(rows_of[name]), BLOCK):
            rows = rows_of[name][start : start + BLOCK]
            first, last = int(rows[0]), int(rows[-1])
            at = slice(first, last + 1) if last - first < len(rows) else rows  # in one piece: not copied
            vectors[at] = drift.apply(vectors[at])
