"""Requests into typed values, by hand: the query path must not pay for a schema library on 128 floats."""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn, TypeVar

import numpy as np
from pydantic_core import from_json
from starlette.requests import Request

from stream_odml.ingest import fields
from stream_odml.ingest.plain import NameTwice, json_once
from stream_odml.ingest.reasons import RowError
from stream_odml.ingest.vectors import MAX_VALUE
from stream_odml.search.filters import Filters
from stream_odml.service.backend import Floats, Query
from stream_odml.service.errors import ApiError, bad_request, unprocessable
from stream_odml.service.multipart import Part, images_alone, parse_multipart
from stream_odml.service.pool import ShortestFirst
from stream_odml.zero import is_zero

T = TypeVar("T")
MAX_NAME = 512
MAX_FILTER_VALUES = 1000
MAX_FILTER_ATTRIBUTES = 64
SMALL_BODY = 1 << 15
"""Bytes of JSON that take less time to read than to hand to a thread and back."""
MAX_READ_AGAIN = 1 << 20
MAX_VALUES = 1 << 20
"""Values of one JSON body, such as 256 vectors of 4,096 numbers."""
MAX_VECTOR_VALUES = 1 << 17
"""The same for one vector, which may have 65,536 numbers, and its filter."""
_STRANGE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
_NAME_ENDS = re.compile(rb'"\s*:')


def _no_constant(name: str) -> NoReturn:
    raise bad_request(f"the JSON body holds {name}, which is not JSON", "send finite numbers")


async def read_json(
    request: Request, reader: Callable[[dict[str, Any]], T], max_values: int = MAX_VALUES
) -> T:
    """Read the body, a JSON object, with `reader`, on a thread if that may take long. Raises ApiError 400 for another
    body, 413 for more than `max_values` values, and what `reader` raises."""
    body = await request.body()
    return await read_on_thread(request, body, lambda: reader(json_object(body, max_values)))


async def read_on_thread(request: Request, body: bytes, work: Callable[[], T]) -> T:
    """Return `work(body)`: at once if the body is small, else on a thread, the smallest body first."""
    if len(body) <= SMALL_BODY:
        return work()
    pool: ShortestFirst = request.app.state.parsing
    return await pool.run(len(body), work)


def json_object(body: bytes, max_values: int) -> dict[str, Any]:
    """Parse the body as a JSON object. Raises ApiError 400 for another body, 413 for more than `max_values` values: a
    number costs the interpreter a hundred times what a byte of an image does."""
    if body.count(b",") > max_values:
        raise ApiError(
            413,
            "too_many_values",
            f"the JSON body holds more than {max_values} values",
            "send fewer vectors at once, or packed as base64",
        )
    try:
        value = from_json(body, allow_inf_nan=False)
    except ValueError:
        if len(body) > MAX_READ_AGAIN:
            raise _no_json() from None
        value = _read_again(body)
    else:
        # Of one name twice the fast reader keeps the last; that it dropped one shows in the count of names, for which
        # the body is read slowly only where its text holds something like another one.
        if len(_NAME_ENDS.findall(body)) != _count_names(value):
            _read_again(body)
    if not isinstance(value, dict):
        raise bad_request(f"the body is a JSON {type(value).__name__}, not an object", "send one JSON object")
    return value


def _read_again(body: bytes) -> Any:
    """Parse with a slower reader that says what is wrong, and accepts the few forms that the fast one refuses. Raises
    ApiError 400, for an object with one name twice too."""
    try:
        return json_once(body, _no_constant)
    except NameTwice as error:
        raise bad_request(f"in the JSON body {error}", "send each name of an object once") from None
    except (ValueError, RecursionError):
        raise _no_json() from None


def _no_json() -> ApiError:
    return bad_request("the body is not valid JSON", "send one JSON object, UTF-8")


def _count_names(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_count_names, value.values()))
    if isinstance(value, list) and value and isinstance(value[0], dict | list):
        return sum(map(_count_names, value))
    return 0


def known_keys(body: Mapping[str, Any], allowed: frozenset[str]) -> None:
    """Raise ApiError 422 if `body` has a key that nothing reads: a misspelt filter must not pass for no filter."""
    unknown = sorted(set(body) - allowed)
    if unknown:
        raise unprocessable(
            "unknown_field",
            f"unknown field {clipped(unknown[0])}",
            f"known fields: {', '.join(sorted(allowed))}",
        )


async def read_form(request: Request, reader: Callable[[list[Part]], T]) -> T:
    """Read the body, multipart/form-data, as `read_json` does."""
    form, body = request.headers["content-type"], await request.body()
    return await read_on_thread(request, body, lambda: reader(parse_multipart(form, body)))


async def read_images(request: Request) -> list[bytes]:
    """Return the images of a body that is a form, or the bytes of one. Raises ApiError 415 for another."""
    kind = media_type(request)
    if kind == "multipart/form-data":
        return await read_form(request, images_alone)
    if kind.startswith("image/") or kind == "application/octet-stream":
        return [await request.body()]
    raise unsupported(request, "application/json, multipart/form-data, or the bytes of an image as image/*")


def check_count(count: int, limit: int, of: str) -> None:
    """Raise ApiError 422 unless 1 to `limit` of something are sent."""
    if not 1 <= count <= limit:
        raise unprocessable("bad_batch", f"{count} {of}", f"send 1 to {limit}")


def media_type(request: Request) -> str:
    """Return the request's media type, lower case, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def only_json(request: Request) -> None:
    """Raise ApiError 415 unless the body is JSON."""
    if media_type(request) != "application/json":
        raise unsupported(request, "application/json")


def unsupported(request: Request, wanted: str) -> ApiError:
    """Return error 415: the media type is not supported here."""
    seen = media_type(request) or "a body without Content-Type"
    return ApiError(415, "unsupported_media_type", f"cannot read {clipped(seen)}", f"send {wanted}")


# --- vectors ---------------------------------------------------------------------------------------------


def vectors_from(value: object, limit: int) -> Floats:
    """Return vectors [n, d] out of a list of lists, or of {"base64", "dim"} (little-endian float32). ApiError 422."""
    if isinstance(value, dict):
        vectors = _packed(value)
        check_count(len(vectors), limit, "vectors in the batch")
        return _finite(vectors)
    rows = _list(value, "vectors")
    check_count(len(rows), limit, "vectors in the batch")
    if len({len(_list(row, "vector")) for row in rows}) > 1:
        raise unprocessable("bad_vector", "the vectors differ in length", "send vectors of one length")
    return np.stack([vector_from(row) for row in rows])


def vector_from(value: object) -> Floats:
    """Return one vector [d] out of a JSON list of numbers. ApiError 422 for anything else, also NaN and infinity."""
    row = _list(value, "vector")
    if not row or not all(type(x) is float or type(x) is int for x in row):
        raise unprocessable(
            "bad_vector", "the vector is empty or holds something that is no number", "send a list of numbers"
        )
    try:
        with np.errstate(over="ignore"):
            return _finite(np.array(row, dtype=np.float64).astype(np.float32))
    except OverflowError:
        raise unprocessable(
            "bad_vector", "the vector holds a number too large", "send float32 values"
        ) from None


def item_vector(value: object) -> Floats:
    """Return the vector [d] of a new item: a list, or one row as `vectors_from` takes it packed. ApiError 422."""
    if not isinstance(value, dict):
        return vector_from(value)
    vectors = _finite(_packed(value))
    if len(vectors) != 1:
        raise unprocessable("bad_vector", f"{len(vectors)} vectors of one item", "send one")
    vector: Floats = vectors[0]
    return vector


def _packed(value: Mapping[str, Any]) -> Floats:
    known_keys(value, frozenset({"base64", "dim"}))
    dim = integer(value.get("dim"), "dim", 1, 65_536)
    data = from_base64(value.get("base64"), "vectors.base64")
    if not data or len(data) % (4 * dim):
        raise unprocessable(
            "bad_vector",
            f"{len(data)} bytes are no rows of {dim} float32 values",
            "send 4 bytes for each value",
        )
    return np.frombuffer(data, dtype="<f4").reshape(-1, dim).astype(np.float32)


def _finite(vectors: Floats) -> Floats:
    if not (np.abs(vectors) <= MAX_VALUE).all():  # false for NaN too
        raise unprocessable(
            "bad_vector", "the vector holds NaN, infinity or a huge value", "send finite values"
        )
    if is_zero(vectors).any():
        raise unprocessable(
            "bad_vector",
            "a vector of zeros has no direction to compare",
            "send what the model gave for an image",
        )
    return vectors


# --- the rest of a query -----------------------------------------------------------------------------------

QUERY_KEYS = frozenset({"k", "filter", "group_by", "group_size", "min_version", "min_seq"})
_FILTER_KEYS = frozenset({"class", "attributes", "from", "to"})


def query_from_json(body: Mapping[str, Any], max_k: int) -> Query:
    """Return the `k`, `filter`, `group_by` … of a JSON body. ApiError 422 with the field that is wrong."""
    chosen = body.get("filter")
    chosen = {} if chosen is None else chosen
    if not isinstance(chosen, dict):
        raise unprocessable(
            "bad_filter",
            "filter is not an object",
            'send {"class": [...], "attributes": {...}, "from": ..., "to": ...}',
        )
    known_keys(chosen, _FILTER_KEYS)
    group_by = body.get("group_by")
    if group_by not in (None, "class"):
        raise unprocessable("bad_group_by", f"cannot group by {clipped(group_by)}", "use group_by=class")
    if group_by is None and body.get("group_size") is not None:
        raise unprocessable(
            "bad_group_size", "group_size without group_by groups nothing", "add group_by=class"
        )
    return Query(
        k=integer(body.get("k", 10), "k", 1, max_k),
        filters=Filters(
            classes=_classes(chosen.get("class")),
            attributes=_wanted_attributes(chosen.get("attributes")),
            since=moment(chosen.get("from"), "from"),
            until=moment(chosen.get("to"), "to"),
        ),
        group_by_class=group_by == "class",
        group_size=integer(body.get("group_size", 1), "group_size", 1, 100),
        min_version=optional_name(body.get("min_version"), "min_version"),
        min_seq=None if body.get("min_seq") is None else integer(body["min_seq"], "min_seq", 0, 2**62),
    )


def _classes(value: object) -> frozenset[str] | None:
    if value is None:
        return None
    names = [value] if isinstance(value, str) else _list(value, "filter.class")
    if len(names) > MAX_FILTER_VALUES:
        raise unprocessable(
            "bad_filter", f"{len(names)} classes in the filter", f"at most {MAX_FILTER_VALUES}"
        )
    return frozenset(name_from(name, "class") for name in names)


def _wanted_attributes(value: object) -> dict[str, str]:
    """Return the attributes that a filter asks for, as they are stored."""
    if value is None:
        return {}
    if not isinstance(value, dict) or len(value) > MAX_FILTER_ATTRIBUTES:
        raise unprocessable(
            "bad_attributes",
            f"attributes is not an object of at most {MAX_FILTER_ATTRIBUTES} strings",
            "send names with the text that each shall have",
        )
    return {name_from(key, "attribute"): _wanted_value(key, text) for key, text in value.items()}


def _wanted_value(key: object, text: object) -> str:
    if not isinstance(text, str):
        raise unprocessable("bad_attributes", f"attribute {clipped(key)} is {clipped(text)}", "send a string")
    return _checked(fields.attribute_value, text, f"attribute {clipped(key)}", "bad_attributes")


# --- the fields of an item ---------------------------------------------------------------------------------


def class_from(value: object) -> str:
    """Return the class of a new item, as it will be stored. ApiError 422."""
    return _checked(fields.class_name, value, "class", "bad_name")


def id_from(value: object) -> str | None:
    """Return the id of a new item, as it will be stored, or None. ApiError 422."""
    return _checked(fields.item_id, value, "id", "bad_name")


def attributes_from(value: object) -> dict[str, str]:
    """Return the attributes of a new item, as they will be stored. ApiError 422."""
    if not isinstance(value, dict | None):
        raise unprocessable(
            "bad_attributes", f"attributes is {clipped(value)}", "send an object of names and values"
        )
    return _checked(fields.attributes, value, "attributes", "bad_attributes")


def moment(value: object, field: str) -> datetime | None:
    """Return an ISO 8601 time, or seconds since 1970; UTC where no zone is given. ApiError 422."""
    return _checked(fields.when, value, field, "bad_time")


def _checked(read: Callable[[Any], T], value: object, field: str, error: str) -> T:
    """Return `value` as a reader of shards would store it. Raises ApiError 422 where the reader refuses it."""
    try:
        return read(value)
    except RowError as refused:
        raise unprocessable(error, f"{field}: {ascii(refused.detail)[1:-1]}", _REMEDIES[error]) from None


_REMEDIES = {
    "bad_name": f"send printable text of 1 to {fields.MAX_NAME_CHARS} characters",
    "bad_attributes": f"send an object of names and values, {fields.MAX_ATTRIBUTES_CHARS} characters in all",
    "bad_time": "send ISO 8601 such as 2026-01-31T12:00:00Z",
}


def integer(value: object, field: str, low: int, high: int) -> int:
    """Return a whole number within low..high, else ApiError 422."""
    if type(value) is not int or not low <= value <= high:
        raise unprocessable(
            f"bad_{field}", f"{field} is {clipped(value)}", f"send a whole number, {low} to {high}"
        )
    return value


def name_from(value: object, field: str) -> str:
    """Return a name to look up, as it would be stored: not blank, without control characters. ApiError 422."""
    if isinstance(value, str) and len(value) <= MAX_NAME and not _STRANGE.search(value):
        name = fields.normalised(value)
        if name:
            return name
    raise unprocessable(
        "bad_name", f"{field} is {clipped(value)}", f"send printable text of 1 to {MAX_NAME} characters"
    )


def optional_name(value: object, field: str) -> str | None:
    """Return `name_from`, or None where the value is absent."""
    return None if value is None else name_from(value, field)


def from_base64(value: object, field: str) -> bytes:
    """Decode base64 text. Raises ApiError 422."""
    try:
        if isinstance(value, str):
            return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        pass
    raise unprocessable("bad_base64", f"{field} is not base64 text", "send standard base64 with padding")


def _list(value: object, field: str) -> Sequence[Any]:
    if not isinstance(value, list):
        raise unprocessable("bad_request_field", f"{field} is not a list", "send a list")
    return value


def clipped(value: object) -> str:
    """Return a value of a request as an error shows it: in ASCII, and not all of what is long."""
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."
