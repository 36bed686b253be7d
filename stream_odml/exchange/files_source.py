"""Galleries in files: Parquet and Arrow tables, npz archives, FAISS indexes with a file of ids.

Protects: no file is read as a whole; a cursor is the number of rows before it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from stream_odml.exchange.errors import ExchangeError, SourceLost
from stream_odml.exchange.source import ID, VECTOR, Block, Chosen, Names, choose, length_of, rows_at_once
from stream_odml.ingest.arrow_rows import class_names_of
from stream_odml.ingest.foreign import is_foreign
from stream_odml.ingest.npz_rows import NpyRows, arrays_of, column
from stream_odml.ingest.table_folders import in_words, table_kind
from stream_odml.storage.regular import UnsafePath, hash_regular
from stream_odml.wording import first_line

TABLES = (".parquet", ".arrow", ".arrows", ".feather", ".ipc")
INDEXES = (".faiss", ".index", ".ivf")
_READ_AHEAD = 8 << 20
_LOOKED_AT = 1024


def identity_of(files: Sequence[Path], *more: object) -> str:
    """Return a name for what files hold, by their content in their order, wherever they lie: a copy is no other
    source. Reads them whole, a gigabyte a second or so."""
    try:
        digests = [hash_regular(file.resolve())[1] for file in files]
    except (OSError, UnsafePath) as error:
        raise ExchangeError(f"{files[0]} cannot be read: {first_line(error)}") from None
    return hashlib.sha256(json.dumps([digests, [str(one) for one in more]]).encode()).hexdigest()[:16]


def _check_alike(files: Sequence[Path], chosen: Chosen) -> None:
    """Raise ExchangeError unless all files have the chosen columns, in one type each."""
    first = _schema(files[0])
    label = chosen.class_name
    for file in files[1:]:
        schema = _schema(file)
        for name in chosen.columns:
            expected = first.field(name).type
            found = schema.field(name).type if name in schema.names else None
            if found != expected:
                raise ExchangeError(
                    f"column {name!r} of {file} is {'not there' if found is None else found}, "
                    f"of {files[0]} {expected}; write all files alike, or adopt them one by one"
                )
        if label is not None and class_names_of(schema, label) != chosen.class_names:
            raise ExchangeError(
                f"{file} names the classes of {label!r} otherwise than {files[0]}; adopt them one by one"
            )


def _tables_below(folder: Path) -> list[Path]:
    """Return the tables of a folder and of those below it. Raises ExchangeError where one is a table of its own, which
    holds deleted rows too."""
    for inner in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        if (kind := table_kind(inner)) is not None:
            raise ExchangeError(f"{inner} cannot be adopted as plain files: it is {in_words(kind)}")
    tables = (path for path in folder.rglob("*") if path.suffix.lower() in TABLES and path.is_file())
    return sorted(path for path in tables if not is_foreign(path.relative_to(folder).as_posix()))


class TableSource:
    """Parquet or Arrow files, one after the other."""

    def __init__(self, path: Path, names: Names) -> None:
        self.name = str(path)
        self._files = [path] if path.is_file() else _tables_below(path)
        if not self._files:
            raise ExchangeError(f"{path} holds no {', '.join(TABLES)}; name a table or a folder of tables")
        self._chosen = choose(_schema(self._files[0]), names, self.name)
        _check_alike(self._files, self._chosen)
        self.count: int | None = sum(_count(file) for file in self._files)
        first = next(self._batches(self._files[0], 0, _LOOKED_AT), None)
        if first is None:
            raise ExchangeError(f"{path} has no rows; there is nothing to adopt")
        self.dim = length_of(pa.table({VECTOR: first[self._chosen.vector]})[VECTOR], self.name)
        self.identity = identity_of(self._files, self._chosen)

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """See `GallerySource`."""
        before, size = int(cursor or 0), rows_at_once(self.dim)
        held: list[pa.Table] = []
        skip = before
        for file in self._files:
            rows = _count(file)
            if skip >= rows:
                skip -= rows
                continue
            for batch in self._batches(file, skip, size):
                held.append(pa.Table.from_batches([batch]))
                while sum(map(len, held)) >= size:
                    whole = pa.concat_tables(held)
                    before += size
                    yield Block(self._chosen.block(whole.slice(0, size)), before)
                    held = [whole.slice(size)] if len(whole) > size else []
            skip = 0
        if held:
            whole = pa.concat_tables(held)
            yield Block(self._chosen.block(whole), before + len(whole))

    def _batches(self, file: Path, skip: int, size: int) -> Iterator[pa.RecordBatch]:
        """Batches of a file without its first rows."""
        try:
            yield from _read(file, self._chosen.columns, skip, size)
        except (pa.ArrowException, OSError) as error:
            raise SourceLost(f"{file} cannot be read: {first_line(error)}") from error


def _schema(file: Path) -> pa.Schema:
    try:
        if _is_parquet(file):
            return pq.read_schema(file)
        return _ipc(file).schema
    except (pa.ArrowException, OSError) as error:
        raise ExchangeError(f"{file} is no {file.suffix} table: {first_line(error)}") from None


def _is_parquet(file: Path) -> bool:
    return file.suffix.lower() == ".parquet"


def _ipc(file: Path) -> Any:
    source = pa.memory_map(str(file))
    is_file = source.read(6) == b"ARROW1"
    source.seek(0)
    return pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source).read_all()


def _count(file: Path) -> int:
    if _is_parquet(file):
        return int(pq.read_metadata(file).num_rows)
    table = _ipc(file)
    if isinstance(table, pa.Table):
        return len(table)
    return sum(table.get_batch(number).num_rows for number in range(table.num_record_batches))


def _read(file: Path, columns: list[str], skip: int, size: int) -> Iterator[pa.RecordBatch]:
    if not _is_parquet(file):
        table = _ipc(file)
        if isinstance(table, pa.Table):
            batches: Iterator[pa.RecordBatch] = iter(table.select(columns).to_batches(size))
        else:
            count = table.num_record_batches
            batches = (table.get_batch(number).select(columns) for number in range(count))
        yield from _without(batches, skip)
        return
    # Buffered beforehand, the columns of all row groups would be kept until the last row of the last is read.
    with pq.ParquetFile(file, buffer_size=_READ_AHEAD, pre_buffer=False) as parquet:
        groups: list[int] = []
        for number in range(parquet.num_row_groups):
            rows = parquet.metadata.row_group(number).num_rows
            if not groups and skip >= rows:
                skip -= rows
            else:
                groups.append(number)
        if groups:
            yield from _without(parquet.iter_batches(size, row_groups=groups, columns=columns), skip)


def _without(batches: Iterator[pa.RecordBatch], skip: int) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if skip < batch.num_rows:
            yield batch.slice(skip)
        skip = max(0, skip - batch.num_rows)


class NpzSource:
    """Arrays of one length in an npz file."""

    def __init__(self, path: Path, names: Names) -> None:
        self.name, self._path = str(path), path
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = {name: NpyRows(archive, name) for name in arrays_of(archive)}
        except (OSError, ValueError, RuntimeError, zipfile.BadZipFile) as error:
            raise ExchangeError(f"{path} is no npz of plain arrays: {first_line(error)}") from None
        fields = [pa.field(name, _arrow_type(array)) for name, array in arrays.items()]
        self._chosen = choose(pa.schema(fields), names, self.name)
        vectors = arrays[self._chosen.vector]
        if len(vectors.shape) != 2:
            raise ExchangeError(
                f"array {self._chosen.vector!r} of {path} has shape {list(vectors.shape)}; "
                "save it as [n, d], one row a vector"
            )
        self.count: int | None = len(vectors)
        self.dim = int(vectors.shape[1])
        if not len(vectors):
            raise ExchangeError(f"{path} has no rows; there is nothing to adopt")
        for name in self._chosen.columns:
            if len(arrays[name]) != len(vectors):
                raise ExchangeError(
                    f"array {name!r} of {path} has {len(arrays[name])} rows, its vectors {len(vectors)}; "
                    "save one value for each vector"
                )
        self.identity = identity_of([path], self._chosen)

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """See `GallerySource`."""
        start, size, total = int(cursor or 0), rows_at_once(self.dim), int(self.count or 0)
        try:
            with zipfile.ZipFile(self._path) as archive:
                arrays = {name: NpyRows(archive, name) for name in self._chosen.columns}
                for array in arrays.values():
                    for at in range(0, start, size):
                        array.take(min(size, start - at))
                for at in range(start, total, size):
                    count = min(size, total - at)
                    parts = {name: _as_column(array, count) for name, array in arrays.items()}
                    yield Block(self._chosen.block(pa.table(parts)), at + count)
        except (OSError, ValueError, RuntimeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise SourceLost(f"{self.name} cannot be read: {first_line(error)}") from error


def _arrow_type(array: NpyRows) -> pa.DataType:
    kind = pa.string() if array.dtype.kind in "US" else pa.from_numpy_dtype(array.dtype)
    return kind if len(array.shape) == 1 else pa.list_(kind)


def _as_column(array: NpyRows, count: int) -> pa.Array:
    values = array.take(count)
    if values.ndim == 1:
        return pa.array(column(values))
    return as_lists(values.astype(np.float32, copy=False))


def as_lists(vectors_nd: Any) -> pa.Array:
    """Return float32 [n, d] as a column of vectors."""
    flat = pa.array(np.ascontiguousarray(vectors_nd, np.float32).reshape(-1))
    return pa.FixedSizeListArray.from_arrays(flat, vectors_nd.shape[1])


class FaissSource:
    """A FAISS index, whose vectors are reconstructed, and a file that says whose they are."""

    def __init__(self, path: Path, names: Names, ids: Path | None) -> None:
        import faiss

        self.name, self._path = str(path), path
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        except RuntimeError as error:
            raise ExchangeError(f"{path} is no FAISS index: {first_line(error)}") from None
        self._numbers, self._owner = None, index  # an index inside another one goes with it
        if isinstance(index, faiss.IndexIDMap):
            self._numbers = faiss.vector_to_array(index.id_map)
            index = faiss.downcast_index(index.index)
        if isinstance(index, faiss.IndexIVF):
            index.make_direct_map()
        self._index = index
        self.dim, self.count = int(index.d), int(index.ntotal)
        self._table = None if ids is None else _ids_table(ids, self.count)
        if self._table is None:
            self._chosen = None
        else:
            with_vector = self._table.append_column(VECTOR, pa.nulls(self.count, pa.list_(pa.float32())))
            named = Names(VECTOR, names.id, names.class_name, names.attributes)
            self._chosen = choose(with_vector.schema, named, str(ids))
        self.identity = identity_of([path, *([ids] if ids else [])], names)

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """See `GallerySource`."""
        size = rows_at_once(self.dim)
        for at in range(int(cursor or 0), self.count, size):
            count = min(size, self.count - at)
            try:
                vectors = as_lists(self._index.reconstruct_n(at, count))
            except RuntimeError as error:
                raise SourceLost(
                    f"{self.name} does not give its vectors back: {first_line(error)}; export them with their ids"
                ) from error
            if self._chosen is None or self._table is None:
                numbers = (
                    np.arange(at, at + count) if self._numbers is None else self._numbers[at : at + count]
                )
                table = pa.table({VECTOR: vectors, ID: pa.array(numbers)})
            else:
                table = self._chosen.block(self._table.slice(at, count).append_column(VECTOR, vectors))
            yield Block(table, at + count)


def _ids_table(path: Path, count: int) -> pa.Table:
    """Return what a file says of vectors, in their order: a table, or a list of ids."""
    readers: dict[str, Callable[[], Any]] = {
        ".parquet": lambda: pq.read_table(path),
        ".csv": lambda: pyarrow.csv.read_csv(path),
        ".npy": lambda: np.load(path, allow_pickle=False).tolist(),
        ".json": lambda: json.loads(path.read_text(encoding="utf-8")),
        ".txt": lambda: path.read_text(encoding="utf-8").splitlines(),
    }
    if path.suffix not in readers:
        raise ExchangeError(f"{path}: expected a file of ids that ends in {', '.join(readers)}")
    try:
        found = readers[path.suffix]()
        table: pa.Table = found if isinstance(found, pa.Table) else pa.table({ID: found})
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        raise ExchangeError(f"{path} cannot be read as ids: {first_line(error)}") from None
    if len(table) != count:
        raise ExchangeError(
            f"{path} names {len(table)} ids for {count} vectors; give one for each, in their order"
        )
    return table
