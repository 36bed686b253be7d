"""Files of this repository, read and parsed once for all tests that look at how they are written."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "stream_odml"


@functools.cache
def parsed(path: Path) -> ast.Module:
    """Return the syntax tree of a file, for tests that change nothing in it."""
    return ast.parse(path.read_text(encoding="utf-8"))


def paths(folder: Path, *words: str) -> list[Path]:
    """Return the modules below a folder; of words, those in whose text, in lower case, any of them is."""
    found = sorted(folder.rglob("*.py"))
    return [path for path in found if not words or _holds_any(path, words)]


def modules(folder: Path, *words: str) -> Iterator[tuple[Path, ast.Module]]:
    """Yield the modules that `paths` returns, each with its syntax tree."""
    for path in paths(folder, *words):
        yield path, parsed(path)


def _holds_any(path: Path, words: tuple[str, ...]) -> bool:
    text = path.read_text(encoding="utf-8").lower()
    return any(word in text for word in words)
