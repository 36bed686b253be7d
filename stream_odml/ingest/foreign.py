"""Files that systems and tools leave beside people's images: one predicate for folders, tars and the demo.

A Finder's `._cat.jpg` has the suffix of an image and is none; a gallery of a network drive keeps its
thumbnails below `@eaDir`. Neither is a row, and neither says anything about the rows beside it.
"""

from __future__ import annotations

from pathlib import PurePosixPath

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
