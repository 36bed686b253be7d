"""Folders that are one table: their files hold deleted rows and earlier versions too, which only the table's log tells.

Protects: a row that somebody deleted does not come back because its file is landed as it lies.
"""

from __future__ import annotations

import os
from pathlib import Path

_LOGS = {
    "_delta_log": ("a Delta table", "follow it with `source.kind: delta`"),
    ".hoodie": ("a Hudi table", "write its rows to a Parquet file, and land that"),
    "_versions": ("a Lance table", "follow it with `source.kind: lance`"),
}
_STREAM = ("a stream root", "copy it with `stream-odml backup`, or land the folder that its images came from")
_ICEBERG = ("an Iceberg table", "follow it with `source.kind: iceberg`, or write its rows to a Parquet file")


def table_kind(folder: Path) -> tuple[str, str] | None:
    """Return what kind of table a folder is, and what to do with it; None for any other folder."""
    names = set(os.listdir(folder))
    for log, what in _LOGS.items():
        if log in names and (folder / log).is_dir() and (log != "_versions" or "data" in names):
            return what
    if {"ledger", "gallery", "versions"} <= names and (folder / "ledger" / "_delta_log").is_dir():
        return _STREAM
    metadata = folder / "metadata"
    described = os.listdir(metadata) if metadata.is_dir() else []
    return _ICEBERG if any(name.endswith(".metadata.json") for name in described) else None


def in_words(what: tuple[str, str]) -> str:
    """Return both parts of what `table_kind` found as a sentence's end."""
    return f"{what[0]}, whose files hold deleted rows too: {what[1]}"
