"""Samples of a WebDataset tar: members that share a key (the path up to the first dot of the file name) are
one row.

`key.jpg` (or png, webp, gif, bmp) is the image; the class comes from `key.json` (class_name, cls or
label), `key.cls` or `key.txt`. Nothing is ever extracted to disk, and a member whose name leads out of
the tar is refused.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from typing import Any

from stream_odml.stream.foreign import is_foreign
from stream_odml.stream.rawrow import MAX_IMAGE_BYTES, RawRow
from stream_odml.stream.reasons import BadShard, Reason, TransientReadError
from stream_odml.stream.shard import IMAGE_SUFFIXES, is_safe_path
from stream_odml.stream.storage import ShardFile

_BLOCK = 512
_MAX_TEXT_BYTES = 1 << 20
_SIDE = ("json", "cls", "txt")


def tar_rows(file: ShardFile) -> Iterator[RawRow]:
    """Samples in the order of the tar. Raises BadShard (empty, truncated, corrupt) and TransientReadError."""
    _check_ends(file)
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            yield from _samples(tar)
    except (tarfile.TarError, EOFError, ValueError, UnicodeError, OverflowError) as error:
        if isinstance(error, BadShard):
            raise
        cut = "unexpected end" in str(error) or "truncated" in str(error)
        raise BadShard(Reason.TRUNCATED_FILE if cut else Reason.CORRUPT_FILE, str(error)[:300]) from error
    except OSError as error:
        if isinstance(error, TransientReadError) or file.failure is not None:
            raise
        raise BadShard(Reason.CORRUPT_FILE, str(error)[:300]) from error


def _check_ends(file: ShardFile) -> None:
    """A tar ends with blocks of zeros; without them it was cut off, perhaps cleanly between two members."""
    size = file.size_bytes
    if size == 0:
        raise BadShard(Reason.EMPTY_FILE, "the file has no bytes")
    if file.head(512)[257:262] != b"ustar":
        raise BadShard(Reason.CORRUPT_FILE, "no tar header at the start")
    file.seek(max(0, size - _BLOCK))
    tail = file.read(_BLOCK) or b""
    if size % _BLOCK or any(tail):
        raise BadShard(Reason.TRUNCATED_FILE, "no end-of-archive block")
    file.seek(0)


def _samples(tar: tarfile.TarFile) -> Iterator[RawRow]:
    row, key, parts = 0, "", {}  # type: int, str, dict[str, Any]
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # or the tar keeps every header in memory
        if member.isdir() or is_foreign(member.name):
            continue
        problem = _refuse(member)
        member_key, extension = _split(member.name)
        if parts and (member_key != key or problem):
            yield _sample(row, key, parts)
            row, parts = row + 1, {}
        if problem:
            yield RawRow(row, problem=problem)
            row += 1
            continue
        key = member_key
        parts[extension] = _take(tar, member, extension)
    if parts:
        yield _sample(row, key, parts)


def _split(name: str) -> tuple[str, str]:
    folder, _, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}/{stem}" if folder else stem, extension.lower()


def _refuse(member: tarfile.TarInfo) -> tuple[Reason, str] | None:
    if not is_safe_path(member.name):
        return Reason.UNSAFE_PATH, f"member {member.name[:200]!r} leads out of the tar"
    if not member.isfile():
        return Reason.UNSAFE_PATH, f"member {member.name[:200]!r} is a link or a device, not a file"
    return None


def _take(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> bytes | tuple[Reason, str]:
    limit = _MAX_TEXT_BYTES if extension in _SIDE else MAX_IMAGE_BYTES
    if member.size > limit:
        return Reason.OVERSIZED, f"member {member.name[:200]!r} declares {member.size} bytes, at most {limit}"
    stream = tar.extractfile(member)
    data = stream.read() if stream is not None else b""
    if len(data) != member.size:
        raise BadShard(
            Reason.TRUNCATED_FILE, f"member {member.name[:200]!r} has {len(data)} of {member.size} bytes"
        )
    return data


def _sample(row: int, key: str, parts: dict[str, Any]) -> RawRow:
    refused = next((part for part in parts.values() if isinstance(part, tuple)), None)
    image = next((data for name, data in parts.items() if f".{name}" in IMAGE_SUFFIXES), None)
    if refused or image is None:
        return RawRow(
            row, problem=refused or (Reason.MISSING_IMAGE, f"sample {key[:200]!r} has no image"), key=key
        )
    note: dict[str, Any] = {}
    if "json" in parts:
        try:
            note = json.loads(parts["json"])
            if not isinstance(note, dict):
                raise ValueError(f"{type(note).__name__}, expected an object")
        except (ValueError, RecursionError) as error:
            return RawRow(row, image, problem=(Reason.BAD_ATTRIBUTES, f"{key[:200]}.json: {error}"), key=key)
    label = next((note[name] for name in ("class_name", "cls", "label") if note.get(name) is not None), None)
    label = label if label is not None else parts.get("cls", parts.get("txt"))
    identity = note.get("item_id", note.get("id"))
    time = note.get("time", note.get("timestamp"))
    return RawRow(row, image, label, None, identity, note.get("attributes"), time, key=key)
