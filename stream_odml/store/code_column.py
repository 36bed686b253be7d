"""Codes of trunk features as an Arrow column of bytes, one string of bytes a row, and back without a Python loop."""

# n rows   D trunk feature

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CHUNK_BYTES = 1 << 30
"""Of one Arrow array, whose offsets have 32 bits."""


def code_column(codes_nD: NDArray[Any]) -> pa.Array | pa.ChunkedArray:
    """Return int8 or float16 codes [n, D] as a column of bytes."""
    width = codes_nD.dtype.itemsize * codes_nD.shape[1]
    rows = max(1, CHUNK_BYTES // width)
    parts = [_array(codes_nD[start : start + rows], width) for start in range(0, max(1, len(codes_nD)), rows)]
    return parts[0] if len(parts) == 1 else pa.chunked_array(parts)


def codes_of(column: pa.ChunkedArray, dim: int) -> NDArray[Any]:
    """Return what `code_column` was given. Its type follows from its length in bytes. Raises ValueError for a row that
    is null or has another dimension."""
    parts = [_codes(chunk, dim) for chunk in column.chunks if len(chunk)]
    if not parts:
        return np.empty((0, dim), np.int8)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _array(codes_nD: NDArray[Any], width: int) -> pa.Array:
    offsets = np.arange(len(codes_nD) + 1, dtype=np.int32) * np.int32(width)
    data = pa.py_buffer(np.ascontiguousarray(codes_nD).reshape(-1).view(np.uint8))
    return pa.Array.from_buffers(pa.binary(), len(codes_nD), [None, pa.py_buffer(offsets), data])


def _codes(chunk: pa.Array, dim: int) -> NDArray[Any]:
    _, places, data = chunk.buffers()
    offsets = np.frombuffer(places, np.int32)[chunk.offset : chunk.offset + len(chunk) + 1]
    widths = np.diff(offsets)
    width = int(widths[0])
    if chunk.null_count or width not in (dim, 2 * dim) or (widths != width).any():
        raise ValueError(
            f"stored features have {sorted({int(w) for w in widths[:1000]})[:3]} bytes, expected {dim} or {2 * dim} "
            f"for dimension {dim}; the table does not fit this store"
        )
    raw = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]
    return raw.view(np.int8 if width == dim else np.float16).reshape(len(chunk), dim)
