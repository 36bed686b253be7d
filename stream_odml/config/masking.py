"""Masks secrets in configurations and errors, which end in terminals, logs and bug reports."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

MASK = "***"
_OPTIONS = frozenset({"storage_options", "options"})
"""Sections whose values are all masked: which options of an object store are secrets is unknown here."""
_SECRET = (
    r"secret|token|passw|pwd|credential|(?:api|access|account|private)[_-]?key|signature|\bsig\b|\bsas\b"
)
_SECRET_KEY = re.compile(_SECRET, re.I)
_NAMES_A_PLACE = re.compile(r"_(file|env)$")
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")
_USER_INFO = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?:[^\s/@:]*:[^\s]*|(?<=http://|ttps://)[^\s/@]+)@", re.I
)
_PARAMETER = re.compile(rf"(?P<name>[?&;][^=&\s]*(?:{_SECRET})[^=&\s]*=)[^&\s'\"]+", re.I)
_ASSIGNED = re.compile(rf"(?P<name>[\w.-]*(?:{_SECRET})[\w.-]*['\"]?\s*=\s*)['\"]?[^\s'\"]+", re.I)
_QUOTED = re.compile(
    rf"(?P<name>(?P<q>['\"])[^'\"\n]*(?:{_SECRET})[^'\"\n]*(?P=q)\s*:\s*)(?:'[^'\n]*'|\"[^\"\n]*\")", re.I
)
_CREDENTIALS = re.compile(r"(?P<name>\b(?:bearer|basic)\s+)[\w.~+/=-]{8,}", re.I)


def masked_text(text: str) -> str:
    """Return text with masked passwords in URLs, and masked values where it assigns to a secret's name."""
    text = _USER_INFO.sub(rf"\g<scheme>{MASK}@", text)
    text = _CREDENTIALS.sub(rf"\g<name>{MASK}", _QUOTED.sub(rf"\g<name>'{MASK}'", text))
    return _ASSIGNED.sub(rf"\g<name>{MASK}", _PARAMETER.sub(rf"\g<name>{MASK}", text))


def masked(value: Any, *path: object) -> Any:
    """Return plain data with masked secrets; `path`: the keys that lead to it."""
    if isinstance(value, Mapping):
        return {masked_text(str(key)): masked(item, *path, key) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [masked(item, *path) for item in value]
    if value is None or value == "" or not is_secret(*path, value=value):
        return masked_text(value) if isinstance(value, str) else value
    return MASK


def is_secret(*path: object, value: object = None) -> bool:
    """Return whether the place that `path` leads to holds a secret."""
    names = [str(name) for name in path]
    if not _OPTIONS.isdisjoint(names):
        return True
    if not names or not _SECRET_KEY.search(names[-1]):
        return False
    # The name of a variable is no secret, unless the token itself was written there.
    if names[-1].endswith("_env"):
        return not (isinstance(value, str) and _VARIABLE.fullmatch(value))
    return not _NAMES_A_PLACE.search(names[-1])
