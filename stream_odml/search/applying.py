"""Drift maps applied to many vectors, where they lie and block by block.

Protects: beside the vectors nothing is held that grows with them, nor with the number of versions that made them.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.store.tables import FloatArray

BLOCK = 8192
"""Rows mapped at a time."""


def apply_into(drift: DriftMap, vectors: FloatArray, out: FloatArray) -> None:
    """Map float32 [n, d] into ``out`` [n, d], perhaps the same array, block by block."""
    for start in range(0, len(vectors), BLOCK):
        out[start : start + BLOCK] = drift.apply(vectors[start : start + BLOCK])


def map_in_place(
    maps: Iterable[tuple[str, DriftMap]],
    names: Sequence[str],
    codes: NDArray[np.integer[Any]],
    vectors: FloatArray,
) -> None:
    """Map each of ``vectors`` float32 [n, d] by the one of ``maps`` that bears its name: row i's is names[codes[i]]."""
    order = np.argsort(codes, kind="stable")
    ends = np.cumsum(np.bincount(codes, minlength=len(names)))
    numbers = {name: number for number, name in enumerate(names)}
    for name, drift in maps:
        number = numbers[name]
        mine = order[ends[number - 1] if number else 0 : ends[number]]
        if isinstance(drift, IdentityMap) or not len(mine):
            continue
        first, last = int(mine[0]), int(mine[-1]) + 1
        if last - first == len(mine):
            apply_into(drift, vectors[first:last], vectors[first:last])
            continue
        for start in range(0, len(mine), BLOCK):
            rows = mine[start : start + BLOCK]
            vectors[rows] = drift.apply(vectors[rows])
