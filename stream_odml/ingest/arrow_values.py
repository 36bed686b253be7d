"""Arrow values as plain Python ones, and the columns of a table as what `fields.py` checks.

`attributes` may be a map; a list of structs of a name and a value, which is how Polars, DuckDB and Spark's
`map_entries` write a map; a list of lists of two, which is pandas' form of one; a struct; or text of a JSON object.
How each value becomes text: `plain.py`. A column of another type (a list of tags, say) is refused by its type, since
no row of it says which attribute it is.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa

from stream_odml.ingest.plain import as_text, bytes_text, seconds_text, unboxed
from stream_odml.ingest.reasons import BadShard, Reason, RowError

MAX_VALUES = 4096
"""Of the attributes of one row, nested ones included."""
MAX_DEPTH = 32
_MAX_VALUE_BYTES = 1 << 17
_PER_SECOND = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}
_PAIR_NAMES = ({"key", "value"}, {"name", "value"}, {"k", "v"})
_EPOCH = datetime(1970, 1, 1)
_TEXTS = {kind.id for kind in (pa.string(), pa.large_string(), pa.string_view())}
_BYTES = {kind.id for kind in (pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(1))}
_LISTS = {
    make(pa.null()).id
    for make in (pa.list_, pa.large_list, pa.list_view, pa.large_list_view, lambda kind: pa.list_(kind, 1))
}
_WRAPPERS = (pa.DictionaryScalar, pa.RunEndEncodedScalar, pa.ExtensionScalar, pa.UnionScalar)

Convert = Callable[[Any], Any]
"""A scalar of a column as what `fields.py` takes. Raises RowError."""


def unwrapped(kind: Any) -> Any:
    """Return the type of the values behind dictionary and run-end encodings and extension types."""
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        elif pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
            kind = kind.value_type
        else:
            return kind


def is_text(kind: Any) -> bool:
    """Return whether a type holds text."""
    return kind.id in _TEXTS


def is_bytes(kind: Any) -> bool:
    """Return whether a type holds bytes."""
    return kind.id in _BYTES


def _is_list(kind: Any) -> bool:
    return kind.id in _LISTS


def holds_vectors(kind: Any) -> bool:
    """Return whether a type is a list of numbers, of a length that may be fixed."""
    bare = unwrapped(kind)
    if not _is_list(bare):
        return False
    value = unwrapped(bare.value_type)
    return bool(pa.types.is_floating(value) or pa.types.is_integer(value))


def vector_bytes(scalar: Any) -> tuple[bytes | None, tuple[Reason, str] | None]:
    """Return a list of numbers as little-endian float32, or what is missing. A null among them becomes NaN."""
    bare = inner(scalar)
    if bare is None:
        return None, (Reason.MISSING_VECTOR, "the vector is null")
    with np.errstate(over="ignore", invalid="ignore"):
        values = np.asarray(bare.values.to_numpy(zero_copy_only=False), "<f4")
    return values.tobytes(), None


def attribute_converter(column: str, kind: Any) -> Convert:
    """Return how a column of attributes of this type is read. Raises BadShard(wrong_schema) for a type that is none."""
    bare = unwrapped(kind)
    if is_text(bare) or is_bytes(bare) or pa.types.is_null(bare):
        return lambda scalar: _Reading().value(scalar)
    if pa.types.is_map(bare):
        return lambda scalar: _Reading().pairs(scalar)
    if pa.types.is_struct(bare):
        names = [bare.field(at).name for at in range(bare.num_fields)]
        if len(set(names)) < len(names):
            raise BadShard(Reason.WRONG_SCHEMA, f"column {column} has two fields of one name: {names[:20]}")
        return lambda scalar: _Reading().value(scalar)
    if _is_list(bare) and _is_pair(unwrapped(bare.value_type)):
        return lambda scalar: _Reading().pairs(scalar)
    raise BadShard(
        Reason.WRONG_SCHEMA,
        f"column {column} is {str(kind)[:200]}: no attribute names in it; expected a map, a struct, a list of "
        f"key and value, or text of a JSON object. Rename the column, or write a struct such as {{tags: ...}}",
    )


def _is_pair(kind: Any) -> bool:
    if pa.types.is_struct(kind):
        return {kind.field(at).name.lower() for at in range(kind.num_fields)} in _PAIR_NAMES
    return pa.types.is_null(kind) or _is_list(kind)


def label_value(scalar: Any) -> Any:
    """Return a class name or number; bytes as the text that they are."""
    value = _name(scalar, Reason.BAD_LABEL)
    if not isinstance(value, bytes):
        return _plain(value, scalar, Reason.BAD_LABEL)
    is_padded = pa.types.is_fixed_size_binary(unwrapped(scalar.type))
    return _decoded(value.rstrip(b"\0") if is_padded else value, Reason.BAD_LABEL)


def _name(scalar: Any, reason: Reason) -> Any:
    """Return a value that names something. Databases write whole numbers as decimals: they stay numbers."""
    bare = inner(scalar)
    if bare is not None and pa.types.is_decimal(bare.type):
        number: Decimal = bare.as_py()
        return int(number) if number == number.to_integral_value() else f"{number:f}"
    return _Reading(reason, raw_bytes=True).value(scalar)


def _plain(value: Any, scalar: Any, reason: Reason) -> Any:
    """Return the value, unless it is a list or a struct, which name nothing."""
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RowError(reason, f"{str(scalar.type)[:80]}; expected text or a number")


def id_value(scalar: Any) -> Any:
    """Return an id as text or number: a UUID in its usual form, other fixed-size bytes as text
    or hexadecimal digits."""
    value = _name(scalar, Reason.BAD_ID)
    if not isinstance(value, bytes):
        return _plain(value, scalar, Reason.BAD_ID)
    kind = unwrapped(scalar.type)
    if not pa.types.is_fixed_size_binary(kind):
        return _decoded(value, Reason.BAD_ID)
    try:
        text = value.rstrip(b"\0").decode()  # text that is padded to its width
    except UnicodeDecodeError:
        text = ""
    if text and text.isprintable():
        return text
    return str(UUID(bytes=value)) if len(value) == 16 else value.hex()


def _decoded(value: bytes, reason: Reason) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowError(reason, f"not UTF-8: {value[:32]!r}") from error


def time_value(scalar: Any) -> Any:
    """Return a time as microseconds in a list of one, or what else is there: text, a number, None."""
    bare = inner(scalar)
    if bare is None:
        return None
    if pa.types.is_timestamp(bare.type):
        return [_micros(bare)]
    value = _Reading(Reason.BAD_TIME).value(bare)
    return value if isinstance(value, str | int | float) else repr(value)


def _micros(scalar: Any) -> int:
    return int(scalar.value) * 1_000_000 // _PER_SECOND[scalar.type.unit]


def inner(scalar: Any) -> Any:
    """Return the scalar behind encodings, extension types and unions; None for null."""
    while scalar is not None and scalar.is_valid:
        if not isinstance(scalar, _WRAPPERS):
            return scalar
        scalar = scalar.value
    return None


class _Reading:
    """One scalar, however nested, as plain values; bounded in their number, depth and length."""

    def __init__(self, reason: Reason = Reason.BAD_ATTRIBUTES, raw_bytes: bool = False) -> None:
        self._reason, self._raw_bytes, self._left = reason, raw_bytes, MAX_VALUES

    def value(self, scalar: Any, depth: int = 0) -> Any:
        """Return the value by its type."""
        is_uuid = getattr(scalar.type, "extension_name", "") == "arrow.uuid"
        scalar = inner(scalar)
        self._left -= 1
        self._check_room(0 if depth <= MAX_DEPTH else MAX_VALUES + 1)
        if scalar is None:
            return None
        kind = scalar.type
        if is_text(kind) or is_bytes(kind):
            return self._bytes(scalar, is_uuid)
        if pa.types.is_map(kind):
            return self.pairs(scalar, depth)
        if pa.types.is_struct(kind):
            return {kind.field(at).name: self.value(scalar[at], depth + 1) for at in range(kind.num_fields)}
        if _is_list(kind):
            self._check_room(len(scalar.values))
            return [self.value(item, depth + 1) for item in scalar.values]
        try:
            return _simple(scalar)
        except (ValueError, OverflowError, ArithmeticError, pa.ArrowException) as error:
            raise RowError(self._reason, f"{kind}: {str(error)[:200]}") from error

    def _check_room(self, values: int) -> None:
        if values > self._left or self._left < 0:
            raise RowError(self._reason, f"more than {MAX_VALUES} values, or {MAX_DEPTH} levels, in one row")

    def _bytes(self, scalar: Any, is_uuid: bool) -> Any:
        size = len(scalar.as_buffer())
        if size > _MAX_VALUE_BYTES:
            raise RowError(self._reason, f"a value of {size} bytes, at most {_MAX_VALUE_BYTES}")
        try:
            value = scalar.as_py()
        except UnicodeDecodeError as error:
            raise RowError(self._reason, f"not UTF-8: {bytes(scalar.as_buffer()[:32])!r}") from error
        if is_uuid:
            return str(UUID(bytes=value))
        return value if isinstance(value, str) or self._raw_bytes else bytes_text(value)

    def pairs(self, scalar: Any, depth: int = 0) -> dict[str, Any] | None:
        """Return names and values of a map, in whichever of its forms."""
        scalar = inner(scalar)
        if scalar is None:
            return None
        self._check_room(2 * len(scalar.values))
        found: dict[str, Any] = {}
        for entry in scalar.values:
            key, value = self._pair(entry, depth)
            if not isinstance(key, str | int | float | bool):
                raise RowError(self._reason, f"{key!r:.80} as a name; expected text or a number")
            name = key if isinstance(key, str) else str(key)
            if name in found:
                raise RowError(self._reason, f"the name {name[:80]!r} comes twice")
            found[name] = value
        return found

    def _pair(self, entry: Any, depth: int) -> tuple[Any, Any]:
        entry = inner(entry)
        if entry is None:
            raise RowError(self._reason, "a null where a name and a value are expected")
        if pa.types.is_struct(entry.type):
            first = 0 if entry.type.field(0).name.lower() in ("key", "name", "k") else 1
            parts = [entry[first], entry[1 - first]]
        else:
            if len(entry.values) != 2:
                raise RowError(self._reason, f"a list of {len(entry.values)}; expected a name and a value")
            parts = list(entry.values)
        return self.value(parts[0], depth + 1), self.value(parts[1], depth + 1)


def _simple(scalar: Any) -> Any:
    """Return a scalar without parts, as `plain.as_text` and JSON take it."""
    kind = scalar.type
    if pa.types.is_timestamp(kind):
        return _timestamp_text(scalar)
    if pa.types.is_time(kind):
        return _clock_text(int(scalar.value), _PER_SECOND[kind.unit])
    if pa.types.is_duration(kind):
        return seconds_text(int(scalar.value), _PER_SECOND[kind.unit])
    if pa.types.is_float32(kind) or pa.types.is_float16(kind):
        return unboxed(kind.to_pandas_dtype()(scalar.as_py()))
    value = scalar.as_py()
    if isinstance(value, bool | int | float):
        return value
    return as_text(value) if isinstance(value, Decimal | date) else str(value)


def _timestamp_text(scalar: Any) -> str:
    unit = _PER_SECOND[scalar.type.unit]
    moment = _EPOCH + timedelta(microseconds=_micros(scalar))
    if scalar.type.tz is not None:
        moment = moment.replace(tzinfo=UTC)
    nanos = int(scalar.value) % 1000 if unit == 1_000_000_000 else 0
    if not nanos:
        return moment.isoformat()
    text = moment.isoformat(timespec="microseconds")
    return f"{text[:26]}{nanos:03d}{text[26:]}"


def _clock_text(count: int, per_second: int) -> str:
    seconds, rest = divmod(count, per_second)
    fraction = seconds_text(rest, per_second)[1:]
    return f"{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}{fraction}"
