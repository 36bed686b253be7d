"""Values of any library's types as text: how an attribute is stored, whichever format it came in.

| value | stored as |
|---|---|
| text | itself |
| null, NaN, infinity | nothing: the attribute is missing in this row |
| boolean | `true`, `false` |
| whole number, decimal | its digits, never an exponent |
| float | its shortest form that reads back equal (`0.1`, `2.0`), for 16 and 32 bits too |
| date, time, date and time | ISO 8601; a time with a zone as UTC (`2024-05-01T12:30:00+00:00`) |
| duration | seconds (`93784.5`) |
| UUID | its usual form of 36 characters |
| bytes | their text where they are UTF-8, else hexadecimal digits |
| list, map, struct inside one | JSON; all of the above holds for each part, and what is missing is null |

`arrow_values.py` makes plain Python values of Arrow's, and of whole columns what `fields.attributes` takes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import numpy as np


class NameTwice(ValueError):
    """An object of JSON has one name twice."""


def json_once(data: str | bytes, constant: Callable[[str], Any] | None = None) -> Any:
    """Return JSON as Python values, and for NaN or infinity what `constant` gives for its name. Raises ValueError,
    NameTwice for an object with one name twice: readers differ in which of the values counts."""
    return json.loads(data, object_pairs_hook=_once, parse_constant=constant)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise NameTwice(f"the name {next(n for n in names if names.count(n) > 1)[:80]!r} comes twice")
    return found


def decoded(data: bytes) -> str:
    """Return text that is UTF-8, or UTF-16 with its mark, without the mark. Raises UnicodeDecodeError."""
    return data.decode("utf-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig")


def shown(value: object) -> str:
    """Return the start of a value as Python writes it, for a message; its type alone where it cannot be written
    (nested too deeply, a number of too many digits)."""
    try:
        return f"{value!r:.80}"
    except Exception:  # a producer's own class may raise anything; the message that it is for tells the rest
        return f"a {type(value).__name__}"


def unboxed(value: Any) -> Any:
    """Return a scalar of NumPy as the Python value that it holds, any other value as it is; NaT as None."""
    if isinstance(value, np.floating):
        return float(str(value))  # 0.1, not 0.10000000149011612
    if isinstance(value, np.datetime64):
        return value.astype("datetime64[us]").item()
    if isinstance(value, np.timedelta64):
        return value.astype("timedelta64[us]").item()
    if isinstance(value, np.generic) and not isinstance(value, str | bytes):
        return value.item()
    return None if isinstance(value, datetime) and value != value else value  # NaT of pandas is a datetime


def as_text(value: Any) -> str | None:
    """Return the text of a value by the table above, None for what is missing. Raises ValueError for what has no text
    (TypeError's kind too), RecursionError for what is nested too deeply."""
    part = as_json(value)
    if part is None or isinstance(part, str):
        return part
    return json.dumps(part, allow_nan=False, ensure_ascii=False)


def as_json(value: Any) -> Any:
    """Return the value as JSON has it, by the same table, nested ones too. Raises as `as_text`."""
    value = unboxed(value)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {_key(key): as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    return _scalar(value)


def _scalar(value: Any) -> str | None:
    if isinstance(value, Decimal):
        return f"{value:f}" if value.is_finite() else None
    if isinstance(value, datetime):
        return (value if value.tzinfo is None else value.astimezone(UTC)).isoformat()
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return seconds_text(value // timedelta(microseconds=1), 1_000_000)
    if isinstance(value, UUID):
        return str(value)
    if isinstance(value, bytes):
        return bytes_text(value)
    raise ValueError(f"a {type(value).__name__} has no text; write text, a number or a date")


def _key(value: Any) -> str:
    text = as_text(value)
    if text is None:
        raise ValueError("a name is null")
    return text


def bytes_text(data: bytes) -> str:
    """Return their text where they are UTF-8 without controls, else hexadecimal digits."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return data.hex()
    return text if text.isprintable() else data.hex()


def seconds_text(count: int, per_second: int) -> str:
    """Return a number of parts of a second as seconds: digits, and a point where there is a fraction."""
    return f"{(Decimal(count) / per_second).normalize():f}"
