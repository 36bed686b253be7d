"""Rows out of an npz file of NumPy arrays: `vector` [n, d] or `embedding`, and beside it what a table would have.

Protects: arrays are read a few rows at a time, out of a file that may be a bomb; nothing in it is unpickled.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from stream_odml.ingest.rawrow import NAMES, RawRow
from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.served_vectors import KEY, Origin, origin_in, refuse_served

ROWS = 4096
PARTS = ("vector", "label", "item_id", "time")
KINDS = "biufUS"
"""Of dtypes that are read: numbers and text. Objects would have to be unpickled."""


class NpyRows:
    """One array of an archive, read from its start to its end."""

    def __init__(self, archive: zipfile.ZipFile, name: str) -> None:
        self._file: IO[bytes] = archive.open(f"{name}.npy")
        self.name = name
        version = npy.read_magic(self._file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        self.shape, by_column, self.dtype = header(self._file, max_header_size=1 << 14)
        if self.dtype.kind not in KINDS or (by_column and len(self.shape) > 1) or not self.shape:
            order = " in Fortran order" if by_column else ""
            raise ValueError(
                f"array {name} is {self.dtype} {list(self.shape)}{order}; expected numbers or text, saved in C order"
            )

    def __len__(self) -> int:
        return int(self.shape[0])

    def take(self, rows: int) -> NDArray[Any]:
        """Return the next rows. Raises ValueError where the file ends before."""
        size = rows * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        data = self._file.read(size)
        if len(data) < size:
            raise ValueError(f"array {self.name} ends after {len(data)} of {size} bytes")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])


def arrays_of(archive: zipfile.ZipFile) -> list[str]:
    """Return the names of the arrays."""
    return [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]


def origin_of_arrays(archive: zipfile.ZipFile) -> Origin | None:
    """Return of whose space the vectors are, where an export wrote the archive. Raises as `NpyRows` does."""
    if KEY not in arrays_of(archive):
        return None
    said = NpyRows(archive, KEY)
    return origin_in("".join(map(str, column(said.take(1))))) if said.shape == (1,) else Origin()


def npz_rows(file: Any, *_: object) -> Iterator[RawRow]:
    """Yield rows in order. Raises BadShard (no vectors, arrays of different lengths, vectors that a stream gave out),
    and what a damaged archive makes its readers raise."""
    with zipfile.ZipFile(file) as archive:
        names = arrays_of(archive)
        refuse_served(origin_of_arrays(archive))
        found = {part: next((n for n in NAMES[part] if n in names), None) for part in PARTS}
        parts = {part: NpyRows(archive, name) for part, name in found.items() if name is not None}
        if (vectors := parts.pop("vector", None)) is None:
            detail = f"no array {' or '.join(NAMES['vector'])}; found {names[:20]}"
            raise BadShard(Reason.WRONG_SCHEMA, detail)
        if len(vectors.shape) != 2 or vectors.dtype.kind not in "iuf":
            detail = f"array {vectors.name} is {vectors.dtype} {list(vectors.shape)}; expected numbers [n, d]"
            raise BadShard(Reason.WRONG_SCHEMA, detail)
        wrong = next((part for part in parts.values() if part.shape != (len(vectors),)), None)
        if wrong is not None:
            detail = f"array {wrong.name} is {list(wrong.shape)} for {len(vectors)} vectors; expected one value each"
            raise BadShard(Reason.WRONG_SCHEMA, detail)
        for start in range(0, len(vectors), ROWS):
            count = min(ROWS, len(vectors) - start)
            with np.errstate(over="ignore"):
                block = vectors.take(count).astype("<f4")
            values = {part: column(array.take(count)) for part, array in parts.items()}
            for at in range(count):
                row: dict[str, Any] = {part: found_values[at] for part, found_values in values.items()}
                yield RawRow(start + at, vector=block[at].tobytes(), **row)


def column(values: NDArray[Any]) -> list[Any]:
    """Return numbers and text as Python values; bytes as the text that they are. What is no text has lone surrogates,
    which the check of its row refuses."""
    is_bytes = values.dtype.kind == "S"
    return list((np.char.decode(values, "utf-8", "surrogateescape") if is_bytes else values).tolist())
