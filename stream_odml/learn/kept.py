"""Where the last pass of a stage puts embeddings that are needed once more: in memory, or where its caller says.

Protects: the learning core knows of no disk, and yet a task of any size is finished in bounded memory.
"""

# n rows   d embedding

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Float32s = NDArray[np.float32]


class Kept(Protocol):
    """Rows [n, d] that come batch by batch and are then read as one array."""

    def append(self, rows_nd: Float32s) -> None:
        """Takes n rows more."""
        ...

    def rows(self, dim: int) -> Float32s:
        """All of them [N, dim] in the order in which they came; a read-only memory map will do."""
        ...


Room = Callable[[], Kept]


class InMemory:
    """Keeps the batches as they come."""

    def __init__(self) -> None:
        self._parts: list[Float32s] = []

    def append(self, rows_nd: Float32s) -> None:
        self._parts.append(rows_nd)

    def rows(self, dim: int) -> Float32s:
        return np.concatenate(self._parts) if self._parts else np.empty((0, dim), np.float32)
