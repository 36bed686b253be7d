"""A gallery of another store as it is read: tables of rows, a block at a time, from any place on.

Protects: a block is a pure function of the source and the cursor before it, so that a reader that was killed goes on
where the last block that it committed ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.exchange.errors import ExchangeError
from stream_odml.ingest.arrow_rows import class_names_of
from stream_odml.ingest.arrow_values import holds_vectors, unwrapped
from stream_odml.ingest.rawrow import NAMES
from stream_odml.ingest.served_vectors import Origin
from stream_odml.ingest.shard import ShardRef

BLOCK_ROWS = 32_768
"""Rows of a block, each of which becomes one commit; of long vectors fewer."""
BLOCK_BYTES = 64 << 20
VECTOR, ID, CLASS, ATTRIBUTES, ROW = "vector", "id", "class", "attributes", "row"
"""Columns of a block's table. `attributes`: a struct, or a map."""
CLASS_NAMES = b"class_names"
"""Of the column `class`, where its numbers have names: their list, as JSON, in the field's metadata."""
_ID_NAMES = ("id", "item_id", "key", "uuid")
COLUMN_NAMES = frozenset({*NAMES["vector"], *_ID_NAMES, *NAMES["label"]})
"""Columns that are found by their names: vectors and classes by those that a landed table has, as the same table may be
landed later."""


class Block(NamedTuple):
    """Rows of a source: `table` has the column `vector`, and may have `id`, `class` and `attributes`; of a shard of
    another root also `row`."""

    table: pa.Table
    cursor: Any
    """Where the next block begins, as JSON."""
    shard: ShardRef | None = None
    """Whose rows these are, where another root is taken over: their images can be read from it."""
    error: float = 0.0
    """How far its vectors are off, where they are predicted: what is worst is embedded again first."""
    worst: str = ""
    """Which of its rows are so, see `worst_first.Worst`."""


@dataclass(frozen=True)
class Names:
    """Which columns (fields of a payload) of a source play which part; None: found by their names."""

    vector: str | None = None
    id: str | None = None
    class_name: str | None = None
    attributes: Sequence[str] = field(default=())

    @property
    def by_option(self) -> list[tuple[str, str]]:
        """All that are named, with the option that names each."""
        named = [("--vector", self.vector), ("--id", self.id), ("--class", self.class_name)]
        named += [("--attributes", name) for name in self.attributes]
        return [(option, name) for option, name in named if name is not None]


class GallerySource(Protocol):
    """A gallery that can be taken over."""

    name: str
    """What people call it, without secrets."""
    identity: str
    """Equal for the same rows in the same order."""
    dim: int
    """Length of a vector."""
    count: int
    """Rows in all."""
    note: str
    """What people should know of its vectors; empty for those that are whole."""
    origin: Origin | None
    """Of whose space its vectors are, where a stream gave them out; None for vectors of anything else."""

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """Return rows from a cursor on, from their start for None. Raises SourceLost."""


def rows_at_once(dim: int) -> int:
    """Return rows of one block."""
    return max(256, min(BLOCK_ROWS, BLOCK_BYTES // (4 * max(1, dim))))


@dataclass(frozen=True)
class Chosen:
    """Columns of a table by the part that they play."""

    vector: str
    id: str | None
    class_name: str | None
    attributes: tuple[str, ...]
    class_names: tuple[str, ...] | None = field(default=None, repr=False)
    """Names of numbered classes, which some writers keep in a table's schema. Not shown: what is adopted already is
    known by what this class shows."""

    @property
    def columns(self) -> list[str]:
        """All of them, once each."""
        named = [self.vector, self.id, self.class_name, *self.attributes]
        return list(dict.fromkeys(name for name in named if name is not None))

    def block(self, table: pa.Table) -> pa.Table:
        """Return rows of a table as those of a block."""
        columns = {VECTOR: table[self.vector]}
        if self.id is not None:
            columns[ID] = table[self.id]
        if self.class_name is not None:
            columns[CLASS] = table[self.class_name]
        if self.attributes:
            parts = [table[name].combine_chunks() for name in self.attributes]
            columns[ATTRIBUTES] = pa.StructArray.from_arrays(parts, names=list(self.attributes))
        made = pa.table(columns)
        if self.class_names is None:
            return made
        at = made.schema.get_field_index(CLASS)
        noted = made.schema.field(at).with_metadata({CLASS_NAMES: json.dumps(self.class_names)})
        return made.set_column(at, noted, made.column(at))


def choose(schema: pa.Schema, names: Names, where: str) -> Chosen:
    """Return which columns of a table play which part. Raises ExchangeError for one that is not there."""
    for option, one in names.by_option:
        if one not in schema.names:
            raise ExchangeError(
                f"{where} has no column {one!r}; it has {', '.join(schema.names[:20])}: name one of them with {option}"
            )
    there = [name for name in NAMES["label"] if name in schema.names]
    plain = [name for name in there if not pa.types.is_nested(unwrapped(schema.field(name).type))]
    class_name = names.class_name or next(iter([*plain, *there]), None)
    item_id = names.id or next((name for name in _ID_NAMES if name in schema.names), None)
    vector = names.vector or _vector_column(schema, where)
    for name in (vector, item_id, class_name, *names.attributes):
        if name is not None and schema.names.count(name) > 1:
            raise ExchangeError(
                f"{where} has {schema.names.count(name)} columns {name!r}; give all but one another name"
            )
    kind = schema.field(vector).type
    if not holds_vectors(kind) or pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        raise ExchangeError(
            f"column {vector!r} of {where} is {str(schema.field(vector).type)[:80]}; "
            "name a list of numbers with --vector"
        )
    for part, what, remedy in (
        (class_name, "names no class", "text or numbers with --class"),
        (item_id, "is no id", "text, numbers or UUIDs with --id"),
    ):
        if part is not None and pa.types.is_nested(unwrapped(schema.field(part).type)):
            raise ExchangeError(
                f"column {part!r} of {where} is {str(schema.field(part).type)[:80]}, which {what}; "
                f"name one of {remedy}, or give this one another name"
            )
    class_names = None if class_name is None else class_names_of(schema, class_name)
    return Chosen(vector, item_id, class_name, tuple(dict.fromkeys(names.attributes)), class_names)


def _vector_column(schema: pa.Schema, where: str) -> str:
    lists = [field.name for field in schema if holds_vectors(field.type)]
    named = [name for name in NAMES["vector"] if name in lists]
    if named or len(lists) == 1:
        return named[0] if named else lists[0]
    if not lists:
        raise ExchangeError(
            f"{where} has no column of vectors, of {', '.join(schema.names[:20]) or 'no columns at all'}; "
            "write one that is a list of numbers in each row"
        )
    raise ExchangeError(
        f"{where} has {len(lists)} columns that may be vectors, of {', '.join(schema.names[:20])}; "
        "name the one with vectors: --vector COL"
    )


def length_of(column: pa.ChunkedArray, where: str) -> int:
    """Return the length of most vectors of a column. Raises ExchangeError where there is none."""
    kind = unwrapped(column.type)
    if pa.types.is_fixed_size_list(kind):
        length = int(kind.list_size)
    else:
        found, counts = np.unique(pc.list_value_length(column).drop_null().to_numpy(), return_counts=True)
        length = int(found[counts.argmax()]) if len(found) else 0
    if not length:
        raise ExchangeError(f"{where} has no vector in its first rows; name another column with --vector")
    return length


def identity_of_place(*said: object) -> str:
    """Return the identity of what a store holds at a place, by all that tells it from another one."""
    return hashlib.sha256(repr(said).encode()).hexdigest()[:16]


def text_of(value: Any) -> str | None:
    """Return what a store says of an item as text: lists and objects as JSON."""
    if value is None or isinstance(value, str):
        return value
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | list | dict) else str(value)


def as_lists(vectors_nd: Any) -> pa.Array:
    """Return float32 [n, d] as a column of vectors."""
    flat = pa.array(np.ascontiguousarray(vectors_nd, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors_nd.shape[1])


def vectors_of(column: pa.ChunkedArray, dim: int) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return float32 [n, dim], and which rows have a vector of this length: the others are of zeros."""
    array = column.combine_chunks()
    if isinstance(array, pa.ExtensionArray):
        array = array.storage
    if pa.types.is_fixed_size_list(array.type) and array.type.list_size != dim:
        return np.zeros((len(array), dim), np.float32), np.zeros(len(array), bool)
    if pa.types.is_fixed_size_list(array.type):
        fits = array.is_valid()
    else:
        fits = pc.fill_null(pc.equal(pc.list_value_length(array), dim), False)
    there: NDArray[np.bool_] = np.asarray(fits.to_numpy(zero_copy_only=False), bool)
    with np.errstate(over="ignore", invalid="ignore"):
        flat = array.filter(fits) if not there.all() else array
        values = np.asarray(flat.flatten().to_numpy(zero_copy_only=False), np.float32).reshape(-1, dim)
    if there.all():
        return values, there
    vectors = np.zeros((len(array), dim), np.float32)
    vectors[there] = values
    return vectors, there
