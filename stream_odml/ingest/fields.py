"""The fields of a row beside its image: class name, id, attributes, time. Each has one checker, for every way in.

Invariant: what leaves this file is clean text of bounded length, or a `RowError` with its reason; and what leaves it
passes again unchanged, so that what the service accepts is what a reader of the shard accepts.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from functools import lru_cache
from typing import Any

from stream_odml.ingest.invisible import first_invisible, shows_at
from stream_odml.ingest.plain import as_text, json_once, shown, unboxed
from stream_odml.ingest.reasons import Reason, RowError

MAX_NAME_CHARS = 256
MAX_ATTRIBUTES_CHARS = 16_384
"""Of all keys and values of a row together."""
MAX_WHOLE_FLOAT = 2**53
"""From here on a float, which is what some libraries make of whole numbers beside missing ones, is not each of them."""
PATH = "path"
"""The attribute that names a row's file within what was landed."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNIT_ENDS = 10**11
"""A number of seconds, or of thousands of a smaller unit, from which it is taken to be in the next smaller unit."""

_INVISIBLE = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
"""Categories of characters that nobody sees or types: controls, direction marks, zero widths, line separators."""
_NFC_SHRINKS = 4
"""Code points, at most, that normalisation makes one of: longer text cannot become short enough."""


def normalised(text: str) -> str:
    """Return a name as it is stored and looked up: in NFC, without white space around it."""
    text = text.strip()
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def written_out(text: str, keep: str = "") -> str:
    """Return text that only ever shows itself: what would steer a terminal or reorder a line becomes its escape. Names
    that this release took hold nothing of that kind; file names, errors and what earlier releases took may."""
    if text.isprintable():
        return text
    return "".join(
        char.encode("unicode_escape").decode()
        if unicodedata.category(char) in _INVISIBLE and char not in keep and not shows_at(text, at)
        else char
        for at, char in enumerate(text)
    )


@lru_cache(maxsize=65_536)
def _name(text: str, reason: Reason) -> str:
    """Return a name that a person can see, type and put into an address; blank text stays blank."""
    text = text.strip()
    if len(text) <= MAX_NAME_CHARS * _NFC_SHRINKS:
        text = normalised(text)
    if len(text) > MAX_NAME_CHARS:
        raise RowError(reason, f"{len(text)} characters, at most {MAX_NAME_CHARS}: {text[:40]!r}…")
    _refuse(first_invisible(text), text, reason)
    if not any(unicodedata.category(char)[0] in "LNPS" for char in text):
        return ""
    if text in (".", ".."):
        raise RowError(reason, f"{text!r} cannot stand in the path of an address; choose another name")
    return text


def _refuse(invisible: str | None, text: str, reason: Reason) -> None:
    if invisible is not None:
        raise RowError(
            reason, f"invisible or control character U+{ord(invisible):04X} in {text[:80]!r}; leave it out"
        )


def _is_empty(value: object) -> bool:
    return isinstance(value, str | bytes) and not value


def _is_nan(value: object) -> bool:
    """Return whether it is the number by which pandas and NumPy say that a value is missing."""
    return isinstance(value, float) and math.isnan(value)


def _text(value: object, reason: Reason) -> str:
    """Return a string, bytes in UTF-8 or a whole number, as clean text."""
    value = unboxed(value)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError as error:
            raise RowError(reason, f"not UTF-8: {value[:32]!r}") from error
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        if abs(value) >= MAX_WHOLE_FLOAT:
            raise RowError(
                reason, f"{shown(value)} (float) may have lost digits; write whole numbers or text"
            )
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < 10**MAX_NAME_CHARS:
            raise RowError(
                reason, "a number below 0 or of too many digits; expected a name or a number from 0"
            )
        value = str(value)
    if not isinstance(value, str):
        raise RowError(reason, f"{shown(value)} ({type(value).__name__}); expected a name or a whole number")
    return _name(value, reason)


def class_name(value: object, names: Sequence[str] | None = None) -> str:
    """Return the class of a row. A number becomes `names[number]` where names are known, else its digits.

    Raises RowError(missing_label | bad_label).
    """
    value = unboxed(value)
    if names is not None and isinstance(value, float) and value.is_integer():
        value = int(value)
    if names is not None and isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(names):
            raise RowError(Reason.BAD_LABEL, f"label {value}, but the file names {len(names)} classes")
        value = names[value]
    if value is None or _is_empty(value) or _is_nan(value):
        raise RowError(Reason.MISSING_LABEL, "no class name or label")
    text = _text(value, Reason.BAD_LABEL)
    if not text:
        raise RowError(Reason.MISSING_LABEL, "the class name is blank")
    return text


def item_id(value: object) -> str | None:
    """Return the id that a producer gave, or None. Raises RowError(bad_id)."""
    value = unboxed(value)
    if value is None or _is_nan(value):
        return None
    text = _text(value, Reason.BAD_ID)
    if not text:
        raise RowError(Reason.BAD_ID, "the id is blank; leave it out to get one")
    return text


def attributes(value: object) -> dict[str, str]:
    """Return a map, a JSON object or None, as a flat dict of text by the table of `plain.py`; what is missing
    is left out.

    A list counts as a map where each entry is a name and a value: a list of two, or an object of `key` and `value`.
    Raises RowError(bad_attributes): not an object, too long, control characters, a name that is blank or comes twice.
    """
    if value is None or _is_empty(value):
        return {}
    if isinstance(value, (str, bytes)):
        try:
            value = json_once(value.removeprefix("\ufeff") if isinstance(value, str) else value)
        except (ValueError, RecursionError) as error:
            raise RowError(Reason.BAD_ATTRIBUTES, f"not JSON: {error}") from error
    if isinstance(value, list):
        value = _pairs(value)
    if not isinstance(value, Mapping):
        raise RowError(
            Reason.BAD_ATTRIBUTES, f"{type(value).__name__}; expected an object of names and values"
        )
    flat: dict[str, str] = {}
    for key, item in value.items():
        if (text := _attribute_text(item)) is None:
            continue
        name = _name(_attribute_text(key) or "", Reason.BAD_ATTRIBUTES)
        if not name or name in flat:
            what = f"the name {name!r} comes twice" if name else f"the name {shown(key)} is blank"
            raise RowError(
                Reason.BAD_ATTRIBUTES, f"{what}; expected names that differ as NFC without spaces around"
            )
        flat[name] = attribute_value(text)
    length = sum(len(key) + len(item) for key, item in flat.items())
    if length > MAX_ATTRIBUTES_CHARS:
        raise RowError(Reason.BAD_ATTRIBUTES, f"{length} characters, at most {MAX_ATTRIBUTES_CHARS}")
    return flat


def with_path(given: dict[str, str], path: str | None) -> dict[str, str]:
    """Return attributes with the path of the row's file, where they have none and there is room. It is never refused:
    a producer did not choose it as an attribute."""
    if path is None or PATH in given:
        return given
    text = path_text(path)
    length = sum(len(key) + len(item) for key, item in given.items()) + len(PATH) + len(text)
    return given if length > MAX_ATTRIBUTES_CHARS else {**given, PATH: text}


def path_text(path: str) -> str:
    """Return a file's path as an attribute can hold it: NFC, what nobody sees written out."""
    return written_out(path if path.isascii() else unicodedata.normalize("NFC", path))


def attribute_value(text: str) -> str:
    """Return the value of an attribute as it is stored and filtered by: NFC; may be empty, and of several lines. Raises
    RowError(bad_attributes): too long, control characters, lone surrogates."""
    if len(text) > MAX_ATTRIBUTES_CHARS * _NFC_SHRINKS:
        raise RowError(Reason.BAD_ATTRIBUTES, f"{len(text)} characters, at most {MAX_ATTRIBUTES_CHARS}")
    if not text.isprintable():  # running text may hold what a name may not
        controls = (c for c in text if unicodedata.category(c) in ("Cc", "Cs") and c not in "\t\n\r")
        _refuse(next(controls, None), text, Reason.BAD_ATTRIBUTES)
    return text if text.isascii() else unicodedata.normalize("NFC", text)


def _pairs(value: list[Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for entry in value:
        if isinstance(entry, Mapping) and entry.keys() == {"key", "value"}:
            entry = [entry["key"], entry["value"]]
        if not isinstance(entry, list | tuple) or len(entry) != 2 or not isinstance(entry[0], str):
            detail = f"a list with {shown(entry)}; expected an object of names and values"
            raise RowError(Reason.BAD_ATTRIBUTES, detail)
        if entry[0] in found:
            raise RowError(Reason.BAD_ATTRIBUTES, f"the name {entry[0][:80]!r} comes twice")
        found[entry[0]] = entry[1]
    return found


def _attribute_text(value: Any) -> str | None:
    try:
        text = as_text(value)
        (text or "").encode()
    except (ValueError, TypeError, ArithmeticError, RecursionError) as error:
        raise RowError(Reason.BAD_ATTRIBUTES, f"{shown(value)}: {error}") from error
    return text


def when(value: object) -> datetime | None:
    """Return a time in UTC from a datetime, a date, ISO 8601 text or a number since 1970; None stays None.

    A number is in seconds below 10^11 (the year 5138), in milliseconds below 10^14, in microseconds below 10^17, else
    in nanoseconds; text of ten or more digits is such a number. Raises RowError(bad_time), also for digits that are
    those of a date: 20260131 would be a day of 1970, 20260131120000 one of 2612.
    """
    value = unboxed(value)
    if value is None or _is_empty(value) or _is_nan(value):
        return None
    try:
        if isinstance(value, datetime):
            return _in_utc(value)
        if isinstance(value, date):
            return datetime(value.year, value.month, value.day, tzinfo=UTC)
        if isinstance(value, str):
            if re.fullmatch(r"\d{10,19}(\.\d+)?", value.strip()):
                return when(float(value) if "." in value else int(value))
            return _in_utc(datetime.fromisoformat(value.strip()))
        if isinstance(value, (int, float)) and not isinstance(value, bool) and value >= 0:
            if _reads_as_date(value):
                raise ValueError(
                    "digits of a date, not a number since 1970; write it as 2026-01-31T12:00:00Z"
                )
            return _since_epoch(value)
    except OverflowError as error:
        raise RowError(Reason.BAD_TIME, f"{shown(value)} is outside the calendar") from error
    except ValueError as error:
        raise RowError(Reason.BAD_TIME, f"{shown(value)}: {error}") from error
    raise RowError(
        Reason.BAD_TIME, f"{shown(value)}; expected ISO 8601 or seconds since 1970, before year 10000"
    )


def _in_utc(value: datetime) -> datetime:
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def _reads_as_date(value: float) -> bool:
    """Return whether the digits of a number are a date of our times, with or without minutes or seconds."""
    digits = str(int(value)) if value < 10**14 else ""
    if digits[:2] not in ("19", "20") or len(digits) not in (8, 12, 14):
        return False
    try:
        datetime.strptime(digits.ljust(14, "0"), "%Y%m%d%H%M%S")
    except ValueError:
        return False
    return True


def _since_epoch(value: float) -> datetime:
    per_second = next((unit for unit in (1, 1_000, 1_000_000) if value < unit * _UNIT_ENDS), 1_000_000_000)
    if isinstance(value, int):
        return _EPOCH + timedelta(microseconds=value * 1_000_000 // per_second)
    return _EPOCH + timedelta(seconds=value / per_second)


def when_micros(value: int | None) -> datetime | None:
    """Return a time from microseconds since 1970, as Arrow stores it. Raises RowError(bad_time) out of the calendar."""
    try:
        return None if value is None else _EPOCH + timedelta(microseconds=value)
    except OverflowError as error:
        raise RowError(Reason.BAD_TIME, f"{value} microseconds since 1970 is outside the calendar") from error
