"""Which vectors are zero: one definition, for every way in and for whatever gives vectors length 1.

Protects: what is let in has a direction, in the gallery too. 8-bit codes keep a scale of 1/127 of the largest value,
which under float32's smallest normal number is stored as 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

ZERO = 127 * float(np.finfo(np.float32).tiny)
"""Largest magnitude of the values of a zero vector, about 1.5e-36."""


def is_zero(vectors_nd: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows of [n, d] are zero vectors (of [d], whether it is one); none that holds NaN."""
    return np.asarray(np.abs(vectors_nd).max(axis=-1, initial=0.0) <= ZERO)


def unit_rows(vectors_nd: NDArray[Any]) -> NDArray[Any]:
    """Return the rows of [n, d] with length 1, in their own type; zero vectors become zeros alone.

    By the largest value first: squares of large or small float32 values would overflow or vanish.
    """
    peak_n1 = np.abs(vectors_nd).max(axis=1, initial=0.0, keepdims=True)
    unit_nd: NDArray[Any] = vectors_nd / np.where(peak_n1 <= ZERO, np.inf, peak_n1)
    norm_n1 = np.linalg.norm(unit_nd, axis=1, keepdims=True)
    norm_n1[norm_n1 == 0] = 1
    unit_nd /= norm_n1
    return unit_nd
