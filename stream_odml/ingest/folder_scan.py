"""What of a folder on this machine can land: images, tables and tars with their hashes, and what is passed over.

Protects: nothing outside the folder is read. A link is never followed, a pipe or a device never opened.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal
from unicodedata import normalize
from urllib.parse import unquote

from stream_odml.ingest.folder_classes import classes_of, split_classes
from stream_odml.ingest.folder_metadata import METADATA_NAMES, Described, read_metadata
from stream_odml.ingest.passed_over import (
    describe_passed_over,
    in_words,
    is_foreign,
    is_foreign_folder,
    is_landable,
    table_kind,
)
from stream_odml.ingest.reading import check_rows
from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard import FILE_FORMATS, MANIFEST_NAME, ManifestFile, format_of
from stream_odml.storage.regular import hash_regular, is_safe_path
from stream_odml.wording import quoted

_HIVE_LABELS = ("class_name", "class", "label", "labels")
_NO_PARTITION = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class FolderScan:
    """Files that can land, sorted by path, and one line about each kind of thing that cannot."""

    files: tuple[ManifestFile, ...]
    notes: tuple[str, ...] = ()


_Found = dict[
    Literal["files", "metadata", "unused", "foreign", "links", "special", "unsafe", "tables"], list[str]
]
"""Relative paths by what they are; of tables that are folders a line each."""


def scan_folder(folder: Path, besides: Path | None = None) -> FolderScan:
    """Find what can land of `folder`, but for the folder `besides` in it (the inbox itself).

    The class of an image is the path of its folder, without folders that name no class (`folder_classes.py`), or
    the value of `class=...` in it, or what a `metadata` file beside it says.
    Raises ValueError where nothing can land, OSError for what cannot be read.
    """
    if (kind := table_kind(folder)) is not None:
        raise ValueError(f"{folder} is {in_words(kind)}")
    found: _Found = defaultdict(list)
    _walk(folder, "", _identity(besides) if besides is not None else None, found)
    described, notes = _describe(folder, found)
    tables, bad = _tables(folder, [path for path in found["files"] if _is_table(path)])
    images = [path for path in found["files"] if not _is_table(path)]
    classes = classes_of(images)
    files = [_image(folder, path, classes[path], described.get(normalize("NFC", path))) for path in images]
    scan = FolderScan(
        tuple(sorted([*tables, *files], key=lambda file: file.path)),
        (*notes, *bad, *_class_notes(files), *_notes(found)),
    )
    _check(folder, scan, has_table=bool(tables))
    return scan


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _walk(folder: Path, below: str, besides: tuple[int, int] | None, found: _Found) -> None:
    with os.scandir(folder / below) as entries:
        ordered = sorted(entries, key=lambda entry: entry.name)
    for entry in ordered:
        path = f"{below}{entry.name}"
        if entry.is_symlink():
            found["links"].append(path)
        elif entry.is_dir(follow_symlinks=False):
            status = entry.stat(follow_symlinks=False)
            if is_foreign_folder(entry.name):
                found["foreign"].append(path)
            elif (kind := table_kind(folder / path)) is not None:
                found["tables"].append(f"{path} passed over: it is {in_words(kind)}")
            elif (status.st_dev, status.st_ino) != besides:
                _walk(folder, f"{path}/", besides, found)
        elif not stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
            found["special"].append(path)
        else:
            _sort(path, found)


def _sort(path: str, found: _Found) -> None:
    name = PurePosixPath(path).name
    if is_foreign(path):
        found["foreign"].append(path)
    elif is_landable(name) and not is_safe_path(path):
        found["unsafe"].append(path)
    elif name.lower() in METADATA_NAMES:
        found["metadata"].append(path)
    elif is_landable(name):
        found["files"].append(path)
    elif path != MANIFEST_NAME:
        found["unused"].append(path)


def _is_table(path: str) -> bool:
    return format_of(path) in FILE_FORMATS.values()


def _describe(folder: Path, found: _Found) -> tuple[dict[str, Described], list[str]]:
    """Return what the metadata files say of images, by path. One that says nothing of them may be a table of images."""
    described: dict[str, Described] = {}
    notes = []
    there = {normalize("NFC", path) for path in found["files"]}
    for path in found["metadata"]:
        try:
            said = read_metadata(folder / path, PurePosixPath(path).parent)
        except ValueError as error:
            is_none = isinstance(error, BadShard) and error.reason is not Reason.WRONG_SCHEMA
            if _is_table(path) and not is_none:
                found["files"].append(path)
            else:
                notes.append(f"{path} passed over: {error}")
            continue
        notes.append(said.in_words(path, there))
        twice = said.images.keys() & described.keys()
        if again := sorted(image for image in twice if said.images[image] != described[image]):
            other = f"another metadata file describes differently: {path} counts"
            notes.append(f"{_count(again, 'image')} of {path} {other}")
        described |= said.images
    return described, notes


def _tables(folder: Path, paths: Iterable[str]) -> tuple[list[ManifestFile], list[str]]:
    """Return tables and tars with rows that can be used; the others, in words."""
    good, bad = [], []
    for path in sorted(paths):
        label = _hive_label(path)
        values = () if label is None else (("class_name", label),)
        try:
            check_rows(folder / path, format_of(path), dict(values))
        except ValueError as error:
            bad.append(f"passed over: {error}")
        else:
            good.append(replace(_file(folder, path), values=values))
    return good, bad


def _file(folder: Path, path: str) -> ManifestFile:
    size, sha256 = hash_regular(folder / path)
    return ManifestFile(path, size, sha256)


def _image(folder: Path, path: str, by_folder: str, described: Described | None) -> ManifestFile:
    values = dict(described or {})
    if "class_name" not in values:
        label = _hive_label(path)
        if label is None and by_folder != "/".join(PurePosixPath(path).parts[:-1]):
            label = by_folder  # empty where the folders name no class
        values |= {} if label is None else {"class_name": label}
    return replace(_file(folder, path), values=tuple(sorted(values.items())))


def _hive_label(path: str) -> str | None:
    """Return the class in a folder such as `class=cats`."""
    pairs = [part.partition("=") for part in PurePosixPath(path).parts[:-1]]
    named = {key.lower(): unquote(value) for key, sign, value in pairs if sign}
    return next((named[key] for key in _HIVE_LABELS if named.get(key, _NO_PARTITION) != _NO_PARTITION), None)


def class_of(file: ManifestFile) -> str:
    """Return the class of an image of a manifest as it is said there; of a table what holds for all its rows."""
    folder = "" if _is_table(file.path) else PurePosixPath(file.path).parent.as_posix()
    return dict(file.values).get("class_name", folder)


def has_class(file: ManifestFile) -> bool:
    """Return whether an image of a manifest has a class: from its folder, or said of it."""
    return class_of(file) not in ("", ".")


def _check(folder: Path, scan: FolderScan, has_table: bool) -> None:
    why = "".join(f"; {note}" for note in scan.notes)
    if not scan.files:
        raise ValueError(f"{folder} holds no image, table or tar; expected class folders of images{why}")
    if not has_table and not any(map(has_class, scan.files)):
        raise ValueError(
            f"{folder}: none of its {len(scan.files)} images lies in a class folder, so none has a class; "
            f"expected a folder of images for each class, or `metadata.csv` with `file_name` and `label`{why}"
        )


def _class_notes(files: Iterable[ManifestFile]) -> Iterator[str]:
    unlabelled = [file.path for file in files if not has_class(file)]
    if unlabelled:
        folders = "; `train`, `images` and the like name none" * any("/" in path for path in unlabelled)
        yield f"{_count(unlabelled, 'image')} in no class folder, so without a class: quarantined{folders}"
    if (split := split_classes({class_of(file) for file in files})) is not None:
        yield split


def _notes(found: _Found) -> Iterator[str]:
    yield from found["tables"]
    if (passed_over := describe_passed_over(found["unused"])) is not None:
        yield passed_over
    if found["foreign"]:
        yield f"{_count(found['foreign'], 'hidden or system file')} passed over"
    if found["links"]:
        yield f"{_count(found['links'], 'link')} not followed: copy what they lead to (`cp -rL`) to land it"
    if found["unsafe"]:
        why = "a backslash, or a first folder such as `A:`, which other systems take for a place outside: rename it"
        yield f"{_count(found['unsafe'], 'file')} passed over, as the path has {why}"
    if found["special"]:
        yield f"{_count(found['special'], 'pipe, socket or device', 'pipes, sockets or devices')} passed over"


def _count(paths: list[str], one: str, many: str | None = None) -> str:
    return f"{len(paths)} {one if len(paths) == 1 else many or one + 's'} ({quoted(paths)})"
