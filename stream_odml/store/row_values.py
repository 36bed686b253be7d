"""The values of a table's row, checked as they are read: a stream root is data of somebody else.

Protects: what leaves this file has its type and its range, so that nothing that shows a stream meets a list where a
number was; a row that has not is named in one error.
"""

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from stream_odml.store.errors import TableCorrupt

_ID = re.compile(r"[\w.-]{1,200}", re.ASCII)
_LARGEST = 1 << 63


@contextmanager
def reading(table: str, row: Mapping[str, Any]) -> Iterator[None]:
    """Raise TableCorrupt, which names the row, for whatever reading it raises."""
    try:
        if row["time"] is None:
            raise ValueError("it has no time")
        yield
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError) as error:
        why = f"{error.args[0]!r} is not known" if isinstance(error, KeyError) else str(error)
        raise TableCorrupt(
            f"row {row['seq']} of the table {table!r} ({row['kind']!r}) cannot be read: {why[:300]}; "
            "restore the root from a backup"
        ) from error


def parsed(text: str | None) -> dict[str, Any]:
    """Return the JSON object of a `detail`, `metrics` or `artifacts` column. Raises ValueError for anything else."""
    value = json.loads(text or "{}")
    if not isinstance(value, dict):
        raise ValueError(f"it holds a JSON {type(value).__name__}, expected an object")
    return value


def identifier(value: object, name: str) -> str:
    """Return the id of a version, which stands in paths and in headers. Raises ValueError."""
    if not isinstance(value, str) or not _ID.fullmatch(value):
        raise ValueError(f"{name} is {value!r:.80}, expected letters, digits, '-', '_' and '.'")
    return value


def text(value: object, name: str) -> str:
    """Return a string that is not empty. Raises ValueError."""
    if not isinstance(value, str) or not value:
        raise ValueError(f"{name} is {value!r:.80}, expected text")
    return value


def optional_text(value: object, name: str) -> str | None:
    """Return a string, which may be empty, or None. Raises ValueError."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name} is {value!r:.80}, expected text")
    return value


def whole(value: object, name: str, low: int = 0) -> int:
    """Return a whole number from `low` to 2^63. Raises ValueError."""
    if isinstance(value, str) and len(value) < 20 and value.isascii() and value.isdecimal():
        value = int(value)  # how a number of NumPy was written
    if not isinstance(value, int | float) or isinstance(value, bool) or not low <= value < _LARGEST:
        raise ValueError(f"{name} is {value!r:.80}, expected a whole number from {low}")
    return int(value)


def counts(value: object, name: str) -> dict[str, int]:
    """Return whole numbers by name. Raises ValueError."""
    return {key: whole(count, f"{name}[{key!r:.80}]") for key, count in mapping(value, name).items()}


def mapping(value: object, name: str) -> dict[str, Any]:
    """Return a JSON object. Raises ValueError."""
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r:.80}, expected an object")
    return value


def texts(value: object, name: str) -> tuple[str, ...]:
    """Return a list of strings. Raises ValueError."""
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError(f"{name} is {value!r:.80}, expected a list of text")
    return tuple(value)
