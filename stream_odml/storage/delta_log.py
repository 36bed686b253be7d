"""One commit of a Delta table's log, as far as following a table needs it: the files that came, and those that went.

Protects: whoever follows a table, a source or our own reader, sees the same files under the same names.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote


@dataclass(frozen=True)
class AddedFile:
    """A data file as the log names it: nobody has checked yet that `path` stays inside the table."""

    path: str
    size_bytes: int
    time_ms: int
    partition: Mapping[str, str | None]
    """The columns that the table keeps in the log instead of in the file."""
    is_new_data: bool
    """False for what compaction wrote anew."""


@dataclass(frozen=True)
class Commit:
    """What one version of a table changed."""

    added: tuple[AddedFile, ...]
    removed: tuple[str, ...]
    time_ms: int
    """When it was made; 0 where it does not say."""
    changes_table: bool
    """Whether the table is another than it was: its schema, its features, its settings."""


def parse_commit(data: bytes) -> Commit:
    """Return what a commit file says. Raises ValueError for bytes that are no whole commit."""
    try:
        actions: list[dict[str, Any]] = [json.loads(line) for line in data.splitlines()]
        return Commit(
            added=tuple(_added(action["add"]) for action in actions if "add" in action),
            removed=tuple(unquote(action["remove"]["path"]) for action in actions if "remove" in action),
            time_ms=max((int(a.get("commitInfo", {}).get("timestamp", 0)) for a in actions), default=0),
            changes_table=any("protocol" in action or "metaData" in action for action in actions),
        )
    except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise ValueError(f"no whole commit of a Delta table: {type(error).__name__}: {error}") from error


def _added(add: dict[str, Any]) -> AddedFile:
    partition = add.get("partitionValues") or {}
    if not isinstance(partition, dict):
        raise TypeError(f"partitionValues is {partition!r:.80}")
    path, size, time_ms = unquote(add["path"]), int(add["size"]), int(add.get("modificationTime") or 0)
    return AddedFile(path, size, time_ms, partition, bool(add.get("dataChange")))
