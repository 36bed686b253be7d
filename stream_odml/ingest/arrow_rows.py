"""Rows out of a Parquet, Arrow IPC or Lance file, a few at a time: what the decoding process of `tables.py` does.

Columns: `image`, `img` or `bytes` (binary, or a struct with a `bytes` field), or `vector` or `embedding` (a list of
numbers), or neither, where a table only says of what class stored items are; `class_name`, `label` or `labels`, which
vectors may lack; optional `id` or `item_id`, `attributes`, `time` or `timestamp`. Others are not read.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stream_odml.ingest import arrow_values
from stream_odml.ingest.arrow_values import is_bytes, is_text, unwrapped
from stream_odml.ingest.bounds import check_rows, decoded_allowed
from stream_odml.ingest.child import AskedFile
from stream_odml.ingest.lance_file import LANCE, LanceFile
from stream_odml.ingest.plain import as_json
from stream_odml.ingest.rawrow import LABEL_FIELDS, MAX_IMAGE_BYTES, NAMES, Content, RawRow
from stream_odml.ingest.reasons import BadShard, Reason, RowError
from stream_odml.ingest.served_vectors import origin_of, refuse_served

BATCH_ROWS = 128
BATCH_BYTES = 32 << 20
"""Rows decoded at once, and about how many bytes of them."""
_READ_AHEAD = 1 << 20
_DICTIONARIES = {"PLAIN_DICTIONARY", "RLE_DICTIONARY"}

_OTHER_KINDS = (
    (b"PAR1", "parquet", "a Parquet file: give it a name that ends in .parquet"),
    (b"ARROW1", "arrow", "an Arrow file: give it a name that ends in .arrow"),
    (b"FEA1", None, "a Feather file of version 1: write it again with `pyarrow.feather.write_feather`"),
    (b"PARE", None, "an encrypted Parquet file: write it without encryption"),
    (b"\x1f\x8b", None, "compressed with gzip: decompress it"),
    (b"PK\3\4", None, "a zip: unpack it, or give an archive of arrays a name that ends in .npz"),
    (b"SQLite", None, "an SQLite database: write its rows to a Parquet file"),
)
"""How files of other kinds begin, the format that they are, and what to say."""
_ENDS = {"parquet": ((b"PAR1",), b"PAR1"), "arrow": ((b"ARROW1", b"\xff\xff\xff\xff"), b"ARROW1")}
"""How whole files begin and end."""


@dataclass(frozen=True)
class _Columns:
    names: dict[str, str]
    class_names: tuple[str, ...] | None
    constants: Mapping[str, str]
    convert: Mapping[str, arrow_values.Convert]
    content: Content

    @property
    def wanted(self) -> list[str]:
        return [name for name in self.names.values() if name not in self.constants]


def rows_of(
    file: AskedFile | LanceFile, format: str, constants: Mapping[str, str], contents: Sequence[Content]
) -> Iterator[RawRow]:
    """Yield rows in file order; of several `contents` that the table has, the first that is named here. Raises BadShard
    (wrong kind, wrong schema, oversized), what Arrow raises for a file that is damaged, and what `file` raises."""
    if isinstance(file, AskedFile):
        _check_kind(file, format)
    table = _Table(file, constants, contents)
    batches = {"parquet": table.parquet, LANCE: table.lance}.get(format, table.arrow)()
    for row, raw in enumerate(raw for columns, batch in batches for raw in _unpack(batch, columns)):
        yield replace(raw, row=row)


def _check_kind(file: AskedFile, format: str) -> None:
    """Refuse by name what Arrow would call broken: other formats, and older or encrypted ones."""
    for start, kind, remedy in _OTHER_KINDS:
        if kind != format and _at(file, 0, len(start)) == start:
            raise BadShard(Reason.CORRUPT_FILE, f"this is {remedy}")


def blame(file: AskedFile, format: str) -> Reason:
    """Return why a file cannot be read: one that starts well and does not end as its format ends was cut off."""
    starts, end = _ENDS.get(format, ((), b""))
    is_cut = _at(file, 0, 8).startswith(starts) and not _at(file, file.size_bytes - 8, 8).endswith(end)
    return Reason.TRUNCATED_FILE if is_cut else Reason.CORRUPT_FILE


def _at(file: AskedFile, offset: int, count: int) -> bytes:
    file.seek(max(0, offset))
    return file.read(count)


class _Table:
    """One file: which of its columns play which part, and its rows in batches."""

    def __init__(self, file: Any, constants: Mapping[str, str], contents: Sequence[Content]) -> None:
        self._file, self._constants, self._contents = file, constants, contents

    def parquet(self) -> Iterator[tuple[_Columns, Any]]:
        """Yield batches of a Parquet file."""
        size = self._file.size_bytes
        # With a buffer, pages are read as they are needed; without one a column's part of a row group is read at once.
        table = pq.ParquetFile(pa.PythonFile(self._file, mode="r"), buffer_size=_READ_AHEAD, pre_buffer=False)
        columns = self._columns(table.schema_arrow)
        for group in range(table.num_row_groups):
            about = table.metadata.row_group(group)
            if about.total_byte_size > decoded_allowed(size):
                detail = f"row group {group} declares {about.total_byte_size} bytes in a file of {size}"
                raise BadShard(Reason.OVERSIZED, detail)
            check_rows(about.num_rows, size)
            rows = rows_at_once(about, columns.names[columns.content])
            wanted = columns.wanted
            for batch in table.iter_batches(rows, row_groups=[group], columns=wanted, use_threads=False):
                yield columns, batch

    def arrow(self) -> Iterator[tuple[_Columns, Any]]:
        """Yield batches of an Arrow IPC file or stream."""
        source = pa.PythonFile(self._file, mode="r")
        is_file = _at(self._file, 0, 6) == b"ARROW1"
        if not is_file:
            _check_stream_end(self._file)
        self._file.seek(0)
        schema = (pa.ipc.open_file(source) if is_file else pa.ipc.open_stream(source)).schema
        columns = self._columns(schema)
        # Only the columns that are used are decompressed.
        fields = sorted(schema.get_field_index(name) for name in columns.wanted)
        options = pa.ipc.IpcReadOptions(included_fields=fields, use_threads=False)
        self._file.seek(0)
        if is_file:
            reader = pa.ipc.open_file(source, options=options)
            batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
        else:
            batches = iter(pa.ipc.open_stream(source, options=options))
        for batch in batches:
            # Offsets in an IPC file are taken as they are: without this a hostile file reads outside its buffers.
            batch.validate(full=True)
            check_rows(batch.num_rows, self._file.size_bytes)
            for start in range(0, batch.num_rows, BATCH_ROWS):
                yield columns, batch.slice(start, BATCH_ROWS)

    def lance(self) -> Iterator[tuple[_Columns, Any]]:
        """Yield batches of a Lance file."""
        columns = None
        for batch in self._file.batches():
            batch.validate(full=True)
            columns = columns or self._columns(batch.schema)
            yield columns, batch
        if columns is None:
            raise BadShard(Reason.EMPTY_FILE, "the file has no rows")

    def _columns(self, schema: Any) -> _Columns:
        """Return which column plays which part. Raises BadShard(wrong_schema, served_vectors)."""
        constants = self._constants
        found = {
            part: next((name for name in choices if name in schema.names or name in constants), "")
            for part, choices in NAMES.items()
        }
        if found["label"] not in constants:
            usable = (n for n in NAMES["label"] if n in schema.names and _holds_label(schema.field(n).type))
            found["label"] = next(usable, found["label"])
        content = self._content(found, schema)
        if not found["label"] and content != "vector":
            raise BadShard(Reason.WRONG_SCHEMA, _lacks("label", schema))
        if content == "vector":
            refuse_served(origin_of(schema.names, schema.metadata))
        others = {"image", "vector"} - {content}
        names = {part: name for part, name in found.items() if name and part not in others}
        for name in names.values():
            if schema.names.count(name) > 1:
                raise BadShard(Reason.WRONG_SCHEMA, f"column {name} occurs {schema.names.count(name)} times")
        if content != "label":
            self._check_content(content, names[content], schema)
        label = names.get("label")
        if label is not None and label not in constants and not _holds_label(schema.field(label).type):
            detail = f"column {label} is {str(schema.field(label).type)[:200]}; expected text or a number"
            raise BadShard(Reason.WRONG_SCHEMA, detail)
        convert = {
            part: _converter(part, name, schema) for part, name in names.items() if name not in constants
        }
        class_names = None if label is None else class_names_of(schema, label)
        return _Columns(names, class_names, constants, convert, content)

    def _content(self, found: Mapping[str, str], schema: Any) -> Content:
        for content in self._contents:
            if content == "label":
                if found["label"] and found["item_id"]:
                    return content
            elif found[content]:
                return content
        raise BadShard(Reason.WRONG_SCHEMA, _lacks(self._contents[0], schema))

    def _check_content(self, content: Content, name: str, schema: Any) -> None:
        is_constant = name in self._constants
        if not is_constant:
            kind = schema.field(name).type
            if _holds_bytes(kind) if content == "image" else arrow_values.holds_vectors(kind):
                return
        found = "the same in every row" if is_constant else str(schema.field(name).type)[:200]
        wants = "it holds no bytes: expected image files, binary or a struct with bytes"
        if content == "vector":
            wants = "expected a list of numbers, of one length in all rows"
        raise BadShard(Reason.WRONG_SCHEMA, f"column {name} is {found}; {wants}")


def _lacks(part: str, schema: Any) -> str:
    return f"no column {' or '.join(NAMES[part])}; found {schema.names[:20]}"


def _converter(part: str, name: str, schema: Any) -> arrow_values.Convert:
    if part == "attributes":
        return arrow_values.attribute_converter(name, schema.field(name).type)
    simple: dict[str, Callable[[Any], Any]] = {
        "label": arrow_values.label_value,
        "item_id": arrow_values.id_value,
        "time": arrow_values.time_value,
    }
    return simple.get(part, lambda scalar: scalar)


def _holds_bytes(kind: Any) -> bool:
    bare = unwrapped(kind)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    # Where it is null, each row says what it has instead.
    return is_bytes(bare) or bool(pa.types.is_null(bare))


def _holds_label(kind: Any) -> bool:
    numbers = (pa.types.is_null, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(bool(test(unwrapped(kind))) for test in (is_text, is_bytes, *numbers))


def class_names_of(schema: Any, label: str) -> tuple[str, ...] | None:
    """Return the names that the Hugging Face writer keeps in the schema for a numbered label; None for no names."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def rows_at_once(group: Any, column: str | None = None) -> int:
    """Return rows of a row group that take about `BATCH_BYTES` decoded, by one column or by all. A dictionary may hold
    one value that all rows repeat, so a row of it may be as large as all of it."""
    row = 0
    for at in range(group.num_columns):
        about = group.column(at)
        if column is None or about.path_in_schema.split(".")[0] == column:
            # The first is what the file says of itself; that many bytes of the second are really there.
            size = max(int(about.total_uncompressed_size), int(about.total_compressed_size))
            repeats = bool(_DICTIONARIES.intersection(about.encodings)) and size < BATCH_BYTES
            row = max(row, size if repeats else size // max(1, int(group.num_rows)))
    return max(8, min(BATCH_ROWS, BATCH_BYTES // max(1, row)))


def _check_stream_end(file: AskedFile) -> None:
    """Raise BadShard for a stream without its end mark: one that is cut between two batches would pass for whole."""
    tail = _at(file, file.size_bytes - 8, 8)
    if _at(file, 0, 4) == b"\xff\xff\xff\xff" and tail != b"\xff\xff\xff\xff\0\0\0\0":
        raise BadShard(Reason.TRUNCATED_FILE, "no end-of-stream mark")


def _unpack(batch: Any, columns: _Columns) -> Iterator[RawRow]:
    """Yield rows of a batch, each value by itself: what is encoded stays encoded until its row comes."""
    arrays = {part: batch.column(name) for part, name in columns.names.items() if part in columns.convert}
    content: Any = None if columns.content == "label" else arrays.pop(columns.content)
    images = _images(content) if columns.content == "image" else None
    for at in range(batch.num_rows):
        values: dict[str, Any] = {
            part: columns.constants[name] for part, name in columns.names.items() if name in columns.constants
        }
        data = vector = problem = None
        if images is not None:
            data, problem = _image(images[at], content[at])
        elif content is not None:
            vector, problem = arrow_values.vector_bytes(content[at])
        for part, array in arrays.items():
            try:
                values[part] = columns.convert[part](array[at])
            except RowError as error:
                problem = problem or (error.reason, error.detail)
        is_label = columns.content == "label"
        yield RawRow(
            0, data, names=columns.class_names, problem=problem, vector=vector, is_label=is_label, **values
        )


def _images(array: Any) -> Any:
    return _images(pc.struct_field(array, "bytes")) if pa.types.is_struct(array.type) else array


def _image(scalar: Any, whole: Any) -> tuple[bytes | None, tuple[Reason, str] | None]:
    bare = arrow_values.inner(scalar)
    if bare is None:
        return None, (Reason.MISSING_IMAGE, _why_no_bytes(whole))
    buffer = bare.as_buffer()
    if buffer.size > MAX_IMAGE_BYTES:
        return None, (Reason.OVERSIZED, f"{buffer.size} bytes of image, at most {MAX_IMAGE_BYTES}")
    return buffer.to_pybytes(), None


def _why_no_bytes(whole: Any) -> str:
    has_path = pa.types.is_struct(whole.type) and whole.type.get_field_index("path") >= 0
    path = whole["path"].as_py() if whole.is_valid and has_path else None
    only = f"only a path, {path!r:.200}; expected its bytes in the table" if path else "null"
    return f"the image is {only}"


METADATA = "metadata"
"""The format of such a file, for `tables.table_rows`."""


def metadata_rows(file: Any, *_: object) -> Iterator[RawRow]:
    """Yield each row, its columns as `attributes`. Raises BadShard for a table without `file_name`."""
    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        if "file_name" not in schema.names:
            raise BadShard(Reason.WRONG_SCHEMA, f"no column file_name; found {schema.names[:20]}")
        named = {name: names for name in LABEL_FIELDS if (names := class_names_of(schema, name))}
        count = 0
        for batch in table.iter_batches(1024, use_threads=False):
            for row in batch.to_pylist():
                row |= {name: named_label(row[name], names) for name, names in named.items() if name in row}
                yield RawRow(count, attributes={name: _value(value) for name, value in row.items()})
                count += 1


def named_label(label: Any, names: Sequence[str]) -> Any:
    """Return the class of a number, as the writer of a table names it; a number that has no name stays one."""
    is_number = isinstance(label, int | float) and not isinstance(label, bool)
    return names[int(label)] if is_number and label in range(len(names)) else label


def _value(value: Any) -> Any:
    try:
        return as_json(value)
    except (ValueError, RecursionError):  # what no attribute can be costs no image
        return None
