"""What the last pass of a stage leaves on its node's disk until it is handed over: embeddings, then gallery rows.

Protects: of a task of any size only a few thousand rows are in memory at once, and no vector stays behind.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.learn.feature_codes import FeatureFormat
from stream_odml.learn.row_buffer import Float32s
from stream_odml.store.blocks import REPEATED
from stream_odml.store.tables import gallery_schema, restamped

Part = tuple[NDArray[np.int64], Float32s]
"""Numbers [n] of rows and their vectors [n, d]."""
ROWS_AT_ONCE = 1 << 13


class OnDisk:
    """Rows in a file of a folder, read back as a memory map, whose pages the system may drop at any time."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / f"{uuid.uuid4().hex}.f4"
        self._file = self._path.open("wb")

    def append(self, rows_nd: Float32s) -> None:
        """Add n rows."""
        self._file.write(np.ascontiguousarray(rows_nd, np.float32).data)

    def rows(self, dim: int) -> Float32s:
        """Return all rows, as a read-only memory map."""
        self._file.close()
        count = self._path.stat().st_size // (4 * dim)
        if not count:
            return np.empty((0, dim), np.float32)
        return np.memmap(self._path, np.float32, "r", shape=(count, dim))


def in_parts(indices: NDArray[np.int64], vectors: Float32s) -> Iterator[Part]:
    """Yield both, a few thousand rows at a time."""
    for start in range(0, len(indices), ROWS_AT_ONCE):
        yield indices[start : start + ROWS_AT_ONCE], np.array(vectors[start : start + ROWS_AT_ONCE])


def write_rows(
    path: Path, rows: pa.Table, parts: Iterable[Part], version: str, codes: FeatureFormat | None = None
) -> None:
    """Write a Parquet file of gallery rows: those of `rows` that the parts name, with their vectors under `version`,
    in the `codes` of a root in exact form. Raises ValueError for a vector that is not finite."""
    with pq.ParquetWriter(path, gallery_schema(codes), use_dictionary=list(REPEATED)) as writer:
        for at, vectors in parts:
            writer.write_table(restamped(rows.take(pa.array(at)), vectors, version, codes))
