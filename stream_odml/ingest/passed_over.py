"""What a landing leaves behind: which files of a folder can become rows here, and one line about those that cannot."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import PurePosixPath

from stream_odml.ingest.shard import FILE_FORMATS, IMAGE_SUFFIXES
from stream_odml.wording import quoted

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
