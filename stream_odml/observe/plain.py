"""Any value as JSON can hold it: one way for status, metrics and answers, so that no figure can make them fail."""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import fields, is_dataclass
from datetime import date, datetime
from enum import Enum
from typing import Any

MAX_DEPTH = 64


def plain(value: Any, depth: int = MAX_DEPTH) -> Any:
    """Return `value` out of None, bool, int, float, str, list and dict with string keys only. Never raises. Keys that
    are tuples are joined by `/`, numbers that are not finite become None, sets become sorted lists, arrays lists,
    dataclasses dicts, and what JSON has no form for its text."""
    if value is None or type(value) in (bool, int):
        return value
    if isinstance(value, Enum):
        return plain(value.value, depth)
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if depth == 0:
        return _text(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name), depth - 1) for field in fields(value)}
    if isinstance(value, Mapping):
        return {_key(key): plain(inner, depth - 1) for key, inner in value.items()}
    if isinstance(value, Set):
        return sorted((plain(inner, depth - 1) for inner in value), key=repr)
    if isinstance(value, list | tuple):
        return [plain(inner, depth - 1) for inner in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy or torch
        return plain(value.tolist(), depth - 1)
    return _text(value)


def _key(key: Any) -> str:
    if isinstance(key, tuple):
        return "/".join(map(_key, key))
    return _text(key.value if isinstance(key, Enum) else key)


def _text(value: Any) -> str:
    """Return text that UTF-8 can carry: file names may hold lone surrogates."""
    try:
        text = str(value)
    except Exception:  # a broken __str__ must not cost the rest of the answer
        text = f"<{type(value).__name__}>"
    return text.encode("utf-8", "replace").decode("utf-8")
