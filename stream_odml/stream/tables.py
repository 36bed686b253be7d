"""Rows of a Parquet or Arrow IPC file, one record batch in memory at a time.

Columns: `image`, `img` or `bytes` (binary, or a struct with a `bytes` field); `class_name`, `label` or `labels`;
optional `id` or `item_id`, `attributes`, `time` or `timestamp`. Others are not read.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stream_odml.stream import fields
from stream_odml.stream.rawrow import MAX_IMAGE_BYTES, RawRow
from stream_odml.stream.reasons import BadShard, Reason, RowError, TransientReadError
from stream_odml.stream.storage import ShardFile

BATCH_ROWS = 128
MAX_ROW_GROUP_BYTES = 2 << 30
"""Parquet is decoded a row group at a time; one that declares more than this is refused (oversized)."""

_CHOICES = {
    "image": ("image", "img", "bytes"),
    "label": ("class_name", "label", "labels"),
    "item_id": ("item_id", "id"),
    "attributes": ("attributes",),
    "time": ("time", "timestamp"),
}


@dataclass(frozen=True)
class _Columns:
    names: dict[str, str]
    class_names: tuple[str, ...] | None
    constants: Mapping[str, str]


def table_rows(file: ShardFile, format: str, constants: Mapping[str, str] | None = None) -> Iterator[RawRow]:
    """Rows in file order. `constants` are columns that the file leaves out because they are the same in
    every row.

    Raises BadShard (empty, truncated, corrupt, wrong schema, oversized) and TransientReadError.
    """
    if file.size_bytes == 0:
        raise BadShard(Reason.EMPTY_FILE, "the file has no bytes")
    reader = _parquet_batches if format == "parquet" else _arrow_batches
    row = 0
    try:
        for columns, batch in reader(file, constants or {}):
            yield from _unpack(batch, columns, row)
            row += batch.num_rows
    except (pa.ArrowException, OSError, MemoryError, UnicodeDecodeError) as error:
        if isinstance(error, TransientReadError) or file.failure is not None:
            raise TransientReadError(f"{file.uri} cannot be read now: {error}") from error
        raise BadShard(_blame(file, format), f"{type(error).__name__}: {str(error)[:300]}") from error


def _blame(file: ShardFile, format: str) -> Reason:
    """A table that starts well and does not end as its format ends was cut off."""
    file.seek(max(0, file.size_bytes - 8))
    tail, head = file.read(8) or b"", file.head(8)
    if format == "parquet":
        return Reason.TRUNCATED_FILE if head[:4] == b"PAR1" and tail[-4:] != b"PAR1" else Reason.CORRUPT_FILE
    starts = head.startswith((b"ARROW1", b"\xff\xff\xff\xff"))
    return Reason.TRUNCATED_FILE if starts and tail[-6:] != b"ARROW1" else Reason.CORRUPT_FILE


def _columns(schema: Any, constants: Mapping[str, str]) -> _Columns:
    """Which column plays which part. Raises BadShard(wrong_schema)."""
    found = {
        part: next((name for name in choices if name in schema.names or name in constants), "")
        for part, choices in _CHOICES.items()
    }
    for part in ("image", "label"):
        if not found[part]:
            expected = " or ".join(_CHOICES[part])
            raise BadShard(Reason.WRONG_SCHEMA, f"no column {expected}; found {schema.names[:20]}")
    names = {part: name for part, name in found.items() if name}
    for name in names.values():
        if schema.names.count(name) > 1:
            raise BadShard(Reason.WRONG_SCHEMA, f"column {name} occurs {schema.names.count(name)} times")
    image, label = names["image"], names["label"]
    if image in constants or not _holds_bytes(schema.field(image).type):
        kind = "the same in every row" if image in constants else schema.field(image).type
        raise BadShard(
            Reason.WRONG_SCHEMA,
            f"column {image} is {kind}; it holds no bytes: expected image files, binary or a struct with bytes",
        )
    if label not in constants and not _holds_label(schema.field(label).type):
        raise BadShard(
            Reason.WRONG_SCHEMA, f"column {label} is {schema.field(label).type}; expected text or a number"
        )
    return _Columns(names, _class_names(schema, label), constants)


def _holds_bytes(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _holds_bytes(kind.field(index).type)
    binaries = (
        pa.types.is_binary,
        pa.types.is_large_binary,
        pa.types.is_binary_view,
        pa.types.is_fixed_size_binary,
        pa.types.is_null,  # each row then says what it has instead
    )
    return any(test(kind) for test in binaries)


def _holds_label(kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view, pa.types.is_null)
    return any(test(kind) for test in (*texts, pa.types.is_integer, pa.types.is_floating))


def _class_names(schema: Any, label: str) -> tuple[str, ...] | None:
    """Names that the Hugging Face writer keeps in the schema for a numbered label."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(str(name) for name in features[label]["names"])
    except (KeyError, TypeError, ValueError):
        return None


def _parquet_batches(file: ShardFile, constants: Mapping[str, str]) -> Iterator[tuple[_Columns, Any]]:
    table = pq.ParquetFile(pa.PythonFile(file, mode="r"))
    columns = _columns(table.schema_arrow, constants)
    wanted = [name for name in columns.names.values() if name not in constants]
    for group in range(table.num_row_groups):
        declared = table.metadata.row_group(group).total_byte_size
        if declared > MAX_ROW_GROUP_BYTES:
            raise BadShard(
                Reason.OVERSIZED,
                f"row group {group} declares {declared} bytes, at most {MAX_ROW_GROUP_BYTES}",
            )
        for batch in table.iter_batches(BATCH_ROWS, row_groups=[group], columns=wanted, use_threads=False):
            yield columns, batch


def _arrow_batches(file: ShardFile, constants: Mapping[str, str]) -> Iterator[tuple[_Columns, Any]]:
    source = pa.PythonFile(file, mode="r")
    if file.head(6) == b"ARROW1":
        reader = pa.ipc.open_file(source)
        batches = (reader.get_batch(index) for index in range(reader.num_record_batches))
    else:
        _check_stream_end(file)
        reader = pa.ipc.open_stream(source)
        batches = iter(reader)
    columns = _columns(reader.schema, constants)
    for batch in batches:
        # Offsets in an IPC file are taken as they are: without this a hostile file reads outside its buffers.
        batch.validate(full=True)
        for start in range(0, batch.num_rows, BATCH_ROWS):
            yield columns, batch.slice(start, BATCH_ROWS)


def _check_stream_end(file: ShardFile) -> None:
    """A stream may end anywhere between two batches, so without its end mark a cut one would pass for whole."""
    file.seek(max(0, file.size_bytes - 8))
    tail = file.read(8)
    if file.head(4) == b"\xff\xff\xff\xff" and tail != b"\xff\xff\xff\xff\0\0\0\0":
        raise BadShard(Reason.TRUNCATED_FILE, "no end-of-stream mark")
    file.seek(0)


def _unpack(batch: Any, columns: _Columns, first_row: int) -> Iterator[RawRow]:
    def column(part: str) -> list[Any]:
        name = columns.names.get(part)
        if name is None:
            return [None] * batch.num_rows
        if name in columns.constants:
            return [columns.constants[name]] * batch.num_rows
        array = batch.column(batch.schema.get_field_index(name))
        return _times(array) if part == "time" else list(array.to_pylist())

    structs = batch.column(batch.schema.get_field_index(columns.names["image"]))
    images = _images(structs)
    others = zip(*(column(part) for part in ("label", "item_id", "attributes", "time")), strict=True)
    for offset, (label, item_id, attributes, time) in enumerate(others):
        problem = None
        image = images[offset]
        if not image.is_valid:
            problem = (Reason.MISSING_IMAGE, _why_no_bytes(structs[offset].as_py()))
        elif len(image.as_buffer() or b"") > MAX_IMAGE_BYTES:
            problem = (Reason.OVERSIZED, f"more than {MAX_IMAGE_BYTES} bytes of image")
        elif isinstance(time, RowError):
            problem = (time.reason, time.detail)
        data = None if problem and problem[0] is not Reason.BAD_TIME else image.as_py()
        yield RawRow(first_row + offset, data, label, columns.class_names, item_id, attributes, time, problem)


def _why_no_bytes(image: Any) -> str:
    path = image.get("path") if isinstance(image, dict) else None
    if not path:
        return "the image is null"
    return f"the image is only a path, {path!r:.200}; expected its bytes in the table"


def _images(array: Any) -> Any:
    if pa.types.is_struct(array.type):
        return _images(pc.struct_field(array, "bytes"))
    return array


def _times(array: Any) -> list[Any]:
    """Timestamps by whole microseconds: no pandas, and one outside the calendar spoils its own row only."""
    if not pa.types.is_timestamp(array.type):
        return list(array.to_pylist())
    up, down = {"s": (1_000_000, 1), "ms": (1000, 1), "us": (1, 1), "ns": (1, 1000)}[array.type.unit]
    numbers = array.cast(pa.int64()).to_pylist()
    micros = [None if number is None else number * up // down for number in numbers]
    return [_when(value) for value in micros]


def _when(micros: int | None) -> Any:
    try:
        return fields.when_micros(micros)
    except RowError as error:
        return error
