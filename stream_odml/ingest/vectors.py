"""Vectors in place of images: the one check of a vector, for every way in.

Protects: what is stored is finite, differs from zero, and is short enough for sums of squares in float32.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.ingest.reasons import Reason, RowError
from stream_odml.zero import ZERO

Vector = NDArray[np.float32]
MAX_VALUE = 1e15
"""Largest magnitude of a value: squares and sums of such values still fit float32."""
MAX_DIM = 65_536
NOT_FINITE = "a value is NaN, infinite or beyond 1e15: fix the model that made it, or leave the row out"
NO_DIRECTION = "all values are 0, or next to it: it has no direction to compare; leave the row out"


def checked_vector(values: NDArray[Any]) -> Vector:
    """Return one vector as float32. Raises RowError: not finite, zero, or of no length that is taken."""
    with np.errstate(over="ignore"):
        vector: Vector = np.asarray(values, np.float32)
    if vector.ndim != 1 or not 1 <= len(vector) <= MAX_DIM:
        raise RowError(Reason.WRONG_DIMENSION, f"{vector.size} values, expected 1 to {MAX_DIM}")
    largest = float(np.abs(vector).max())
    if not largest <= MAX_VALUE:  # false for NaN too
        raise RowError(Reason.BAD_VECTOR, NOT_FINITE)
    if largest <= ZERO:
        raise RowError(Reason.BAD_VECTOR, NO_DIRECTION)
    return vector


def problems_of(vectors_nd: Vector) -> list[tuple[int, str]]:
    """Return (row, what is wrong with it) for the rows that `checked_vector` would refuse."""
    largest_n = np.abs(vectors_nd).max(axis=1, initial=0.0)
    bad = np.flatnonzero(~((largest_n > ZERO) & (largest_n <= MAX_VALUE)))
    return [(int(row), NO_DIRECTION if largest_n[row] <= ZERO else NOT_FINITE) for row in bad]
