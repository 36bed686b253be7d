"""Buffers for embeddings that the last pass of a stage reads twice: in memory, or where the caller keeps them.

Protects: `learn/` opens no file, and yet a task of any size is finished in bounded memory.
"""

# n rows   d embedding

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]


class RowBuffer(Protocol):
    """Rows [n, d] that are appended batch by batch and then read as one array."""

    def append(self, rows_nd: Float32s) -> None:
        """Add n rows."""
        ...

    def rows(self, dim: int) -> Float32s:
        """Return all rows [N, dim] in the order of `append`; may be a read-only memory map."""
        ...


NewBuffer = Callable[[], RowBuffer]
"""Makes an empty buffer."""


class InMemoryBuffer:
    """A `RowBuffer` that holds its batches in memory."""

    def __init__(self) -> None:
        self._parts: list[Float32s] = []

    def append(self, rows_nd: Float32s) -> None:
        self._parts.append(rows_nd)

    def rows(self, dim: int) -> Float32s:
        return np.concatenate(self._parts) if self._parts else np.empty((0, dim), np.float32)
