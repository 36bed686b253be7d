"""FAISS indexes, whose vectors are reconstructed, with a file that says whose they are.

Protects: vectors come in the order of their numbers, whatever lists an index keeps them in; what an index has only in
part is said, and an index that would end the process is not asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.exchange.errors import ExchangeError, SourceLost
from stream_odml.exchange.files_source import IDS, identity_of
from stream_odml.exchange.source import ID, VECTOR, Block, Names, as_lists, choose, rows_at_once
from stream_odml.ingest.served_vectors import origin_of
from stream_odml.wording import first_line

INDEXES = (".faiss", ".index", ".ivf")
_WHOLE = ("IndexFlat", "IndexIVFFlat", "IndexHNSWFlat", "IndexNSGFlat", "IndexRefineFlat")
"""Beginnings of the kinds that keep every value of a vector."""


class FaissSource:
    """A `GallerySource`: an index, and a file that says whose its vectors are."""

    def __init__(self, path: Path, names: Names, ids: Path | None) -> None:
        self.name, self._path = str(path), path
        index = _read(path)
        self._owner = index  # an index inside another one goes with it
        self._numbers, self._index, self._by_number = _opened(index, path)
        self.dim, self.count = int(index.d), int(index.ntotal)
        if not self.count:
            raise ExchangeError(f"{path} has no vectors; there is nothing to adopt")
        kind = type(self._index).__name__
        self.note = (
            "" if kind.startswith(_WHOLE) else f"{kind} keeps vectors compressed: they are near the true ones"
        )
        if self._by_number and ids is not None:
            raise ExchangeError(
                f"{path} has ids of its own, and keeps its vectors in no order that {ids} could follow; leave --ids out"
            )
        has_ids, beside = self._by_number or self._numbers is not None, path.with_suffix(IDS)
        if ids is None and not has_ids and beside.is_file():
            ids = beside
        self._table = None if ids is None else _ids_table(ids, self.count)
        self._chosen = self.origin = None
        if self._table is not None:
            self.origin = origin_of(self._table.schema.names, self._table.schema.metadata)
            schema = self._table.schema.append(pa.field(VECTOR, pa.list_(pa.float32())))
            self._chosen = choose(schema, replace(names, vector=VECTOR), str(ids))
        self.identity = identity_of([path, *([ids] if ids else [])], names)

    def blocks(self, cursor: Any) -> Iterator[Block]:
        size = rows_at_once(self.dim)
        for at in range(int(cursor or 0), self.count, size):
            count = min(size, self.count - at)
            numbers = np.arange(at, at + count) if self._numbers is None else self._numbers[at : at + count]
            try:
                found = self._index.reconstruct_batch(numbers) if self._by_number else None
                vectors = as_lists(self._index.reconstruct_n(at, count) if found is None else found)
            except RuntimeError as error:
                raise SourceLost(
                    f"{self.name} does not give its vectors back: {_says(error)}; export them with their ids"
                ) from error
            if self._chosen is None or self._table is None:
                table = pa.table({VECTOR: vectors, ID: pa.array(numbers)})
            else:
                table = self._chosen.block(self._table.slice(at, count).append_column(VECTOR, vectors))
            yield Block(table, at + count)


def _read(path: Path) -> Any:
    import faiss

    try:
        with path.open("rb") as file:
            if file.read(2) == b"IB":
                raise ExchangeError(
                    f"{path} is a binary index: its vectors are bits, which no head can be solved of"
                )
        return faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
    except (OSError, RuntimeError) as error:
        raise ExchangeError(f"{path} is no FAISS index: {_says(error)}") from None


def _says(error: BaseException) -> str:
    """Return what FAISS says behind the place in its source."""
    return re.sub(r"^Error in .* at \S+:\d+: (Error: )?('.*' failed: )?", "", first_line(error))


def _opened(index: Any, path: Path) -> tuple[NDArray[np.int64] | None, Any, bool]:
    """Return the number of each vector, unless they count from 0; the index that has them; and whether it is asked by
    number, or by place."""
    import faiss

    numbers = None
    if isinstance(index, faiss.IndexIDMap):
        numbers = faiss.vector_to_array(index.id_map)
        index = faiss.downcast_index(index.index)
    base = faiss.try_extract_index_ivf(index)
    if base is None:
        return numbers, index, False
    inverted: Any = faiss.downcast_index(base)
    if isinstance(inverted, faiss.IndexIVFFastScan):
        raise ExchangeError(
            f"{path} is {type(inverted).__name__}, which does not give its vectors back; adopt what it was made of"
        )
    lists = inverted.invlists
    sizes = [(at, lists.list_size(at)) for at in range(inverted.nlist)]
    parts = [faiss.rev_swig_ptr(lists.get_ids(at), size).copy() for at, size in sizes if size]
    own = np.sort(np.concatenate(parts)) if parts else np.empty(0, np.int64)
    if np.array_equal(own, np.arange(len(own))):
        inverted.make_direct_map()
        return numbers, index, False
    direct_map: Any = faiss.DirectMap  # type: ignore[attr-defined]
    inverted.set_direct_map_type(direct_map.Hashtable)
    return own, index, True


def _csv_as_text(path: Path) -> pa.Table:
    """Read columns as they are written: a reader that guesses makes 7 of the id 007, and no class of `NA` or `null`."""
    names = pyarrow.csv.open_csv(path).schema.names
    as_text = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), null_values=[""], strings_can_be_null=True
    )
    return pyarrow.csv.read_csv(path, convert_options=as_text)


def _ids_table(path: Path, count: int) -> pa.Table:
    """Return what a file says of vectors, in their order: a table, or a list of ids."""
    readers: dict[str, Callable[[], Any]] = {
        ".parquet": lambda: pq.read_table(path),
        ".csv": lambda: _csv_as_text(path),
        ".npy": lambda: np.load(path, allow_pickle=False).tolist(),
        ".json": lambda: json.loads(path.read_text(encoding="utf-8-sig")),
        ".txt": lambda: path.read_text(encoding="utf-8-sig").splitlines(),
    }
    if path.suffix.lower() not in readers:
        raise ExchangeError(f"{path}: expected a file of ids that ends in {', '.join(readers)}")
    try:
        found = readers[path.suffix.lower()]()
        table: pa.Table = found if isinstance(found, pa.Table) else pa.table({ID: found})
    except (OSError, ValueError, TypeError, RecursionError, pa.ArrowException) as error:
        raise ExchangeError(f"{path} cannot be read as ids: {first_line(error)}") from None
    if len(table) != count:
        raise ExchangeError(
            f"{path} names {len(table)} ids for {count} vectors; give one for each, in their order"
        )
    return table
