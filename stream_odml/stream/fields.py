"""The fields of a row beside its image: class name, id, attributes, time. Each has one checker.

Invariant: what leaves this file is clean text of bounded length, or a `RowError` with its reason.
"""

from __future__ import annotations

import json
import math
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

from stream_odml.stream.reasons import Reason, RowError

MAX_NAME_CHARS = 256
MAX_ATTRIBUTES_CHARS = 16_384
_CONTROL = frozenset({"Cc", "Cs", "Zl", "Zp"})
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_SECOND = 253_402_300_799  # 9999-12-31T23:59:59Z


@lru_cache(maxsize=65_536)
def _clean(text: str, reason: Reason) -> str:
    text = unicodedata.normalize("NFC", text.strip()) if not text.isascii() else text.strip()
    if len(text) > MAX_NAME_CHARS:
        raise RowError(reason, f"{len(text)} characters, at most {MAX_NAME_CHARS}: {text[:40]!r}…")
    if not text.isprintable() and any(unicodedata.category(char) in _CONTROL for char in text):
        raise RowError(reason, f"control characters in {text[:80]!r}")
    return text


def _text(value: object, reason: Reason) -> str:
    """A string, bytes in UTF-8 or a whole number, as clean text."""
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise RowError(reason, f"not UTF-8: {value[:32]!r}") from error
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 0:
            raise RowError(reason, f"{value} is negative; expected a name or a number from 0")
        value = str(value)
    if not isinstance(value, str):
        raise RowError(reason, f"{value!r:.80} ({type(value).__name__}); expected a name or a whole number")
    return _clean(value, reason)


def class_name(value: object, names: Sequence[str] | None = None) -> str:
    """The class of a row. A number becomes `names[number]` where names are known, else its digits.

    Raises RowError(missing_label | bad_label).
    """
    if names is not None and isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(names):
            raise RowError(Reason.BAD_LABEL, f"label {value}, but the file names {len(names)} classes")
        value = names[value]
    if value is None or value in ("", b""):
        raise RowError(Reason.MISSING_LABEL, "no class name or label")
    text = _text(value, Reason.BAD_LABEL)
    if not text:
        raise RowError(Reason.MISSING_LABEL, "the class name is blank")
    return text


def item_id(value: object) -> str | None:
    """The id that a producer gave, or None. Raises RowError(bad_id)."""
    if value is None:
        return None
    text = _text(value, Reason.BAD_ID)
    if not text:
        raise RowError(Reason.BAD_ID, "the id is blank; leave it out to get one")
    return text


def attributes(value: object) -> dict[str, str]:
    """A map, a struct, a JSON object or None, as a flat dict of text; nulls are left out.

    Raises RowError(bad_attributes): not an object, a number that is not finite, too long, control characters.
    """
    if value is None or value in ("", b""):
        return {}
    if isinstance(value, (str, bytes)):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError) as error:
            raise RowError(Reason.BAD_ATTRIBUTES, f"not JSON: {error}") from error
    if isinstance(value, list):
        value = _pairs(value)
    if not isinstance(value, Mapping):
        raise RowError(
            Reason.BAD_ATTRIBUTES, f"{type(value).__name__}; expected an object of names and values"
        )
    flat = {
        _clean(str(key), Reason.BAD_ATTRIBUTES): _plain(item)
        for key, item in value.items()
        if item is not None
    }
    length = sum(len(key) + len(item) for key, item in flat.items())
    if length > MAX_ATTRIBUTES_CHARS:
        raise RowError(Reason.BAD_ATTRIBUTES, f"{length} characters, at most {MAX_ATTRIBUTES_CHARS}")
    return flat


def _pairs(value: list[Any]) -> dict[str, Any]:
    try:
        return dict(value)
    except (TypeError, ValueError) as error:
        raise RowError(Reason.BAD_ATTRIBUTES, "a list; expected an object of names and values") from error


def _plain(value: Any) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, allow_nan=False, default=str)
        text.encode()
    except (ValueError, RecursionError) as error:
        raise RowError(Reason.BAD_ATTRIBUTES, f"{value!r:.80}: {error}") from error
    return text


def when(value: object) -> datetime | None:
    """A time in UTC from a datetime, a date, ISO 8601 text or seconds since 1970; None stays None.

    Raises RowError(bad_time).
    """
    if value is None or value == "":
        return None
    try:
        if isinstance(value, datetime):
            return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day, tzinfo=UTC)
        if isinstance(value, str):
            return when(datetime.fromisoformat(value))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= _LAST_SECOND:
            return _EPOCH + timedelta(seconds=value)
    except (ValueError, OverflowError) as error:
        raise RowError(Reason.BAD_TIME, f"{value!r:.80}: {error}") from error
    raise RowError(
        Reason.BAD_TIME, f"{value!r:.80}; expected ISO 8601 or seconds since 1970, before year 10000"
    )


def when_micros(value: int | None) -> datetime | None:
    """A time from microseconds since 1970, as Arrow stores it. Raises RowError(bad_time) out of the
    calendar.
    """
    try:
        return None if value is None else _EPOCH + timedelta(microseconds=value)
    except OverflowError as error:
        raise RowError(Reason.BAD_TIME, f"{value} microseconds since 1970 is outside the calendar") from error
