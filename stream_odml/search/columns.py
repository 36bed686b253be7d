"""The searchable items, column by column, in arrays that grow behind the snapshots that share them.

Protects: a snapshot sees a prefix of fixed length; growing writes only behind it, so nothing seen ever changes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

MAX_CHUNKS = 32
GROWTH_FACTOR = 1.25


@dataclass
class _Buffer:
    array: NDArray[Any]
    taken: int
    """Rows that somebody sees."""


@dataclass(frozen=True, eq=False)
class Growable:
    """The first rows of an array with room behind them: only who sees all that is taken of it grows in place."""

    _buffer: _Buffer
    _n: int

    @staticmethod
    def of(rows: NDArray[Any]) -> "Growable":
        """Return these rows, which nobody may change any more."""
        return Growable(_Buffer(rows, len(rows)), len(rows))

    @staticmethod
    def empty(n: int, *width: int, dtype: Any) -> "Growable":
        """Return `n` rows to be filled, and room for some more; memory is taken when it is first written."""
        return Growable(_Buffer(np.empty((int(n * GROWTH_FACTOR) + 1024, *width), dtype), n), n)

    def __len__(self) -> int:
        return self._n

    @property
    def rows(self) -> NDArray[Any]:
        """Return what is seen."""
        return self._buffer.array[: self._n]

    def grown(self, values: NDArray[Any]) -> "Growable":
        """Return `values` put behind the rows."""
        end, buffer = self._n + len(values), self._buffer
        if buffer.taken != self._n or end > len(buffer.array):
            buffer = Growable.empty(end, *self.rows.shape[1:], dtype=self.rows.dtype)._buffer
            buffer.array[: self._n] = self.rows
        buffer.array[self._n : end] = values
        buffer.taken = end
        return Growable(buffer, end)


@dataclass(frozen=True)
class Strings:
    """Strings as Arrow holds them: a fifth of the memory of Python's."""

    column: pa.ChunkedArray = field(default_factory=lambda: pa.chunked_array([], pa.string()))

    def grown(self, values: pa.Array) -> "Strings":
        chunks = [*self.column.chunks, values]
        if len(chunks) > MAX_CHUNKS:
            chunks = [pa.concat_arrays(chunks)]
        return Strings(pa.chunked_array(chunks, pa.string()))

    def __getitem__(self, i: int) -> str:
        text: str = self.column[i].as_py()
        return text

    def take(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the strings at `rows`, at once where they lie in one piece: Arrow would put pieces together."""
        if self.column.num_chunks != 1:
            return [self[row] for row in rows.tolist()]
        found: list[str] = self.column.chunk(0).take(pa.array(rows)).to_pylist()
        return found

    def within(self, values: Sequence[str] | pa.Array) -> NDArray[np.bool_]:
        """Return where one of `values` stands [n]."""
        wanted = values if isinstance(values, pa.Array) else pa.array(values, pa.string())
        return np.asarray(pc.is_in(self.column, value_set=wanted).to_numpy(), bool)


@dataclass
class Names:
    """Few distinct strings by number; only ever added to, so snapshots share it."""

    names: list[str] = field(default_factory=list)
    numbers: dict[str, int] = field(default_factory=dict)

    def codes(self, column: pa.Array) -> NDArray[np.int32]:
        """Return a number for each value of an Arrow string array, new names included."""
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
        found = encoded.dictionary.to_pylist()
        for name in found:
            if name not in self.numbers:
                self.numbers[name] = len(self.names)
                self.names.append(name)
        table = np.array([self.numbers[name] for name in found], dtype=np.int32)
        codes: NDArray[np.int32] = table[encoded.indices.to_numpy(zero_copy_only=False)]
        return codes


NO_TIME = np.iinfo(np.int64).min
CODED = ("class_name", "shard_id", "version")
KINDS = {"time": np.int64, "held_out": np.bool_, "row": np.int32, **dict.fromkeys(CODED, np.int32)}


@dataclass(frozen=True)
class Columns:
    """Items: id, class, shard and row there, version of the vector, attributes (JSON), time, held out."""

    item_ids: Strings = Strings()
    attributes: Strings = Strings()
    names: dict[str, Names] = field(default_factory=lambda: {name: Names() for name in CODED})
    arrays: dict[str, Growable] = field(
        default_factory=lambda: {name: Growable.empty(0, dtype=dtype) for name, dtype in KINDS.items()}
    )

    @property
    def n(self) -> int:
        """Return how many items there are."""
        return len(self.arrays["row"])

    def grown(self, rows: pa.Table) -> "Columns":
        """Return columns with these gallery rows (no vectors) behind the others."""
        names = ("item_id", "attributes", "time", "held_out", "row", *CODED)
        columns = {name: _one(rows[name]) for name in names}
        values: dict[str, NDArray[Any]] = {name: self.names[name].codes(columns[name]) for name in CODED}
        values["time"] = pc.fill_null(columns["time"].cast(pa.int64()), NO_TIME).to_numpy()
        values["row"] = columns["row"].to_numpy()
        values["held_out"] = columns["held_out"].to_numpy(zero_copy_only=False).astype(bool)
        return Columns(
            self.item_ids.grown(columns["item_id"]),
            self.attributes.grown(columns["attributes"].cast(pa.string())),
            self.names,
            {name: self.arrays[name].grown(values[name]) for name in values},
        )

    def array(self, name: str) -> NDArray[Any]:
        """Return the column `name` [n]: codes for class_name, shard_id, version; µs for time; row: in its shard."""
        return self.arrays[name].rows

    def name(self, column: str, i: int) -> str:
        """Return the string of a coded column at row `i`."""
        return self.names[column].names[int(self.array(column)[i])]

    def taken(self, rows: NDArray[np.int64]) -> "Columns":
        """Return these rows only, in new arrays."""
        at = pa.array(rows)
        arrays = {name: Growable.of(array.rows[rows]) for name, array in self.arrays.items()}
        ids, attributes = (_one(strings.column.take(at)) for strings in (self.item_ids, self.attributes))
        return Columns(Strings().grown(ids), Strings().grown(attributes), self.names, arrays)

    @property
    def nbytes(self) -> int:
        texts = self.item_ids.column.nbytes + self.attributes.column.nbytes
        return int(texts) + sum(a.rows.nbytes for a in self.arrays.values())


def _one(column: pa.ChunkedArray) -> pa.Array:
    whole = column.combine_chunks()
    return whole.combine_chunks() if isinstance(whole, pa.ChunkedArray) else whole
