"""What of people's folders, tars and inboxes is no row: files of systems and tools, tables that are folders, and what
nothing here reads; and one line about what a landing leaves behind.

A Finder's `._cat.jpg` has the suffix of an image and is none; a gallery of a network drive keeps its thumbnails below
`@eaDir`. A folder that is a table holds deleted rows and earlier versions too, which only its log tells: landed as it
lies, a row that somebody deleted would come back.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

from stream_odml.ingest.shard import FILE_FORMATS, IMAGE_SUFFIXES
from stream_odml.wording import quoted

_NAMES = frozenset(
    {
        # macOS
        "__macosx", "icon\r", "network trash folder", "temporary items",
        # Windows
        "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "recycler",
        "system volume information",
        # network drives
        "@eadir", "@recycle", "@recently-snapshot", "@tmp", "#recycle", "#snapshot", "lost+found",
        # tools
        "__pycache__",
    }
)  # fmt: skip
_ENDINGS = ("@synoeastream", "@synoresource", ".crdownload", ".part", ".partial", "~")
_DOCUMENTS = ("readme", "license", "licence", "copying", "notice", "changelog", "citation", "authors")
_DOCUMENT_SUFFIXES = frozenset({"", ".md", ".txt", ".rst", ".html", ".htm", ".pdf", ".cff", ".bib"})


def is_foreign(path: str) -> bool:
    """Return whether a file, by its relative path, is hidden, a system's own, or a README and its kind."""
    file = PurePosixPath(path)
    is_left_behind = file.name.startswith("~$") or file.name.lower().endswith(_ENDINGS)
    is_document = file.stem.lower() in _DOCUMENTS and file.suffix.lower() in _DOCUMENT_SUFFIXES
    return is_left_behind or is_document or any(map(is_foreign_folder, file.parts))


def is_foreign_folder(name: str) -> bool:
    """Return whether a folder of this name is hidden or a system's own."""
    return name != ".." and (name.startswith(".") or name.lower() in _NAMES)


def is_foreign_shard(name: str, is_folder: bool) -> bool:
    """Return whether a name in an inbox is none of a shard. A folder with a manifest may be called `authors`."""
    return is_foreign_folder(name) if is_folder else is_foreign(name)


HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIC_REMEDY = (
    "HEIC images are read once `pip install 'stream-odml[heic]'` was run wherever images are decoded"
)
_SUFFIXES = 8


def reads_heic() -> bool:
    """Return whether the plugin for HEIC, the extra `heic`, is installed in this environment."""
    return find_spec("pillow_heif") is not None


def is_landable(name: str) -> bool:
    """Return whether a file of this name is an image, a table or a tar that can be read here."""
    suffix = PurePosixPath(name).suffix.lower()
    if suffix in HEIC_SUFFIXES:
        return reads_heic()
    return suffix in IMAGE_SUFFIXES or suffix in FILE_FORMATS


def describe_passed_over(names: Iterable[str]) -> str | None:
    """Return one line that counts the files that were not landed, by suffix with some names; None for no file. For
    example: `3 files passed over: 2 .heic (a.heic, b.heic), 1 .txt (notes.txt); HEIC images are read once ...`"""
    by_suffix: dict[str, list[str]] = defaultdict(list)
    for name in names:
        by_suffix[PurePosixPath(name).suffix.lower()].append(name)
    if not by_suffix:
        return None
    ranked = sorted(by_suffix.items(), key=lambda entry: (-len(entry[1]), entry[0]))
    parts = [_count(suffix, sorted(found)) for suffix, found in ranked[:_SUFFIXES]]
    if len(ranked) > _SUFFIXES:
        parts.append(f"{sum(len(found) for _, found in ranked[_SUFFIXES:])} of other kinds")
    total = sum(map(len, by_suffix.values()))
    line = f"{total} file{'s' if total > 1 else ''} passed over: {', '.join(parts)}"
    return f"{line}; {HEIC_REMEDY}" if HEIC_SUFFIXES & by_suffix.keys() and not reads_heic() else line


def _count(suffix: str, names: list[str]) -> str:
    return f"{len(names)} {suffix or 'without suffix'} ({quoted(names)})"


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
