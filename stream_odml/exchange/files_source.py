"""Galleries in files: Parquet and Arrow tables, npz archives.

Protects: no file is read as a whole; a cursor is the number of rows before it.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.exchange.errors import ExchangeError, SourceLost
from stream_odml.exchange.source import (
    COLUMN_NAMES,
    VECTOR,
    Block,
    Chosen,
    Names,
    as_lists,
    choose,
    length_of,
    rows_at_once,
)
from stream_odml.ingest.arrow_rows import class_names_of
from stream_odml.ingest.npz_rows import NpyRows, arrays_of, column, origin_of_arrays
from stream_odml.ingest.passed_over import in_words, is_foreign, table_kind
from stream_odml.ingest.served_vectors import origin_of
from stream_odml.storage.regular import UnsafePath, hash_regular
from stream_odml.wording import first_line

TABLES = (".parquet", ".arrow", ".arrows", ".feather", ".ipc")
IDS = ".ids.parquet"
"""How the name of the file ends that says whose the vectors of a FAISS index beside it are, as an export writes it."""
_READ_AHEAD = 8 << 20
_LOOKED_AT = 1024
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


def identity_of(files: Sequence[Path], *more: object) -> str:
    """Return a name for what files hold, by their content in their order, wherever they lie: a copy is no other
    source. Reads them whole, a gigabyte a second or so."""
    try:
        digests = [hash_regular(file.resolve())[1] for file in files]
    except (OSError, UnsafePath) as error:
        raise ExchangeError(f"{files[0]} cannot be read: {first_line(error)}") from None
    return hashlib.sha256(json.dumps([digests, [str(one) for one in more]]).encode()).hexdigest()[:16]


def _constants_of(file: Path, folder: Path) -> dict[str, str | None]:
    """Return what folders such as `class=cats` say of a file of theirs, as Spark, DuckDB and Arrow write them."""
    pairs = [part.partition("=") for part in file.relative_to(folder).parts[:-1]]
    return {
        unquote(name): None if value == _NO_VALUE else unquote(value) for name, sign, value in pairs if sign
    }


def _check_alike(files: Sequence[Path], chosen: Chosen, added: Sequence[str]) -> None:
    """Raise ExchangeError unless all files have the chosen columns, but for those added, in one type each."""
    first = _schema(files[0])
    label = None if chosen.class_name in added else chosen.class_name
    for file in files[1:]:
        schema = _schema(file)
        for name in (one for one in chosen.columns if one not in added):
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
    tables = (
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in TABLES and path.is_file() and not _is_of_an_index(path)
    )
    return sorted(path for path in tables if not is_foreign(path.relative_to(folder).as_posix()))


def _is_of_an_index(path: Path) -> bool:
    return path.name.endswith(IDS) and path.with_name(f"{path.name.removesuffix(IDS)}.faiss").exists()


class TableSource:
    """A `GallerySource`: Parquet or Arrow files, one after the other."""

    note = ""

    def __init__(self, path: Path, names: Names) -> None:
        self.name = str(path)
        self._files = [path] if path.is_file() else _tables_below(path)
        if not self._files:
            raise ExchangeError(f"{path} holds no {', '.join(TABLES)}; name a table or a folder of tables")
        schema = _schema(self._files[0])
        self._constants = {} if path.is_file() else {file: _constants_of(file, path) for file in self._files}
        everywhere = set.intersection(*map(set, self._constants.values())) if self._constants else set()
        added = sorted(everywhere.difference(schema.names))
        for name in added:
            schema = schema.append(pa.field(name, pa.string()))
        self._chosen = choose(schema, names, self.name)
        origins = (origin_of(one.names, one.metadata) for one in map(_schema, self._files))
        self.origin = next((one for one in origins if one is not None), None)
        self._added = [name for name in self._chosen.columns if name in added]
        _check_alike(self._files, self._chosen, self._added)
        self.count = sum(_count(file) for file in self._files)
        first = next(
            (rows for file in self._files for rows in self._batches(file, 0, _LOOKED_AT) if len(rows)), None
        )
        if first is None:
            raise ExchangeError(f"{path} has no rows; there is nothing to adopt")
        self.dim = length_of(pa.table({VECTOR: first[self._chosen.vector]})[VECTOR], self.name)
        said = [[self._constants[file][name] for name in self._added] for file in self._files if self._added]
        self.identity = identity_of(self._files, self._chosen, *said)

    def blocks(self, cursor: Any) -> Iterator[Block]:
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
        """Yield batches of a file without its first rows."""
        try:
            for rows in _read(
                file, [name for name in self._chosen.columns if name not in self._added], skip, size
            ):
                for name in self._added:
                    value = pa.scalar(self._constants[file][name], pa.string())
                    rows = rows.append_column(name, pa.repeat(value, rows.num_rows))
                yield rows
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
    """A `GallerySource`: arrays of one length in an npz file."""

    note = ""

    def __init__(self, path: Path, names: Names) -> None:
        self.name, self._path = str(path), path
        try:
            with zipfile.ZipFile(path) as archive:
                arrays = _arrays(archive, names)
                self.origin = origin_of_arrays(archive)
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
        self.count = len(vectors)
        self.dim = int(vectors.shape[1])
        if not vectors.shape[1]:
            raise ExchangeError(
                f"array {self._chosen.vector!r} of {path} has vectors of no values; save it again"
            )
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
        start, size, total = int(cursor or 0), rows_at_once(self.dim), self.count
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


def _arrays(archive: zipfile.ZipFile, names: Names) -> dict[str, NpyRows]:
    """Return the arrays that can be columns. Raises ValueError for another one that has the name of a column: beside
    those an archive may hold anything."""
    arrays: dict[str, NpyRows] = {}
    for name in arrays_of(archive):
        try:
            array = NpyRows(archive, name)
            _arrow_type(array)
            arrays[name] = array
        except (ValueError, pa.ArrowNotImplementedError) as error:
            if name in COLUMN_NAMES or any(name == one for _, one in names.by_option):
                raise ValueError(f"array {name}: {first_line(error)}; save it as float32 or text") from None
    return arrays


def _arrow_type(array: NpyRows) -> pa.DataType:
    kind = pa.string() if array.dtype.kind in "US" else pa.from_numpy_dtype(array.dtype)
    return kind if len(array.shape) == 1 else pa.list_(kind)


def _as_column(array: NpyRows, count: int) -> pa.Array:
    values = array.take(count)
    if values.ndim == 1:
        found = column(values)
        try:
            return pa.array(found)
        except UnicodeEncodeError:  # a check of each row refuses those that are no text
            return pa.array([one.encode("utf-8", "surrogatepass") for one in found])
    return as_lists(values.astype(np.float32, copy=False))
