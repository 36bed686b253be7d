"""Drift maps applied to many vectors, where they lie and block by block.

Protects: beside the vectors nothing is held that grows with them, nor with the number of versions that made them.
"""

import numpy as np
import pyarrow as pa

from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.store.mapping import Mapper
from stream_odml.store.select import encode
from stream_odml.store.tables import FloatArray
from stream_odml.store.versions import VersionTree

BLOCK = 8192
"""Rows mapped at a time."""


def apply_into(drift: DriftMap, vectors: FloatArray, out: FloatArray) -> None:
    """Map float32 [n, d] into ``out`` [n, d], perhaps the same array, block by block."""
    for start in range(0, len(vectors), BLOCK):
        out[start : start + BLOCK] = drift.apply(vectors[start : start + BLOCK])


def map_in_place(
    mapper: Mapper, tree: VersionTree, versions: pa.ChunkedArray, end: str, vectors: FloatArray
) -> None:
    """Map ``vectors`` float32 [n, d], made by these ``versions`` [n], into the space of ``end``."""
    if not len(vectors):
        return
    codes, names = encode(versions)
    order, ends = np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))
    numbers = {name: number for number, name in enumerate(names.to_pylist())}
    for name, drift in mapper.into(tree, numbers, end):
        number = numbers[name]
        mine = order[ends[number - 1] if number else 0 : ends[number]]
        if isinstance(drift, IdentityMap):
            continue
        first, last = int(mine[0]), int(mine[-1]) + 1
        if last - first == len(mine):
            apply_into(drift, vectors[first:last], vectors[first:last])
            continue
        for start in range(0, len(mine), BLOCK):
            rows = mine[start : start + BLOCK]
            vectors[rows] = drift.apply(vectors[rows])
