"""Samples of a WebDataset tar: members that share a key (the path up to the first dot of the file name) are one row.

`key.jpg` (or another suffix of an image) is the one image; the class comes from `key.json` (class_name, cls or label),
`key.cls` or `key.txt`, unless that is the caption which `key.json` repeats. What stands after the first dot is one
extension: `22.05.png` is the member `05.png` of the sample `22`, which is no image by that name. Nothing is ever
extracted to disk, other members are not read, and a member whose name leads out of the tar is refused.
"""

from __future__ import annotations

import contextlib
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from stream_odml.ingest.bounds import bounded
from stream_odml.ingest.passed_over import is_foreign
from stream_odml.ingest.plain import decoded, json_once
from stream_odml.ingest.rawrow import MAX_IMAGE_BYTES, RawRow
from stream_odml.ingest.reasons import BadShard, Reason, TransientReadError
from stream_odml.ingest.shard import IMAGE_SUFFIXES
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.storage.regular import is_safe_path

_BLOCK = 512
_MAX_TEXT_BYTES = 1 << 20
_SIDE = ("json", "cls", "txt")
_NAMED = 12
"""Members of a sample that a refusal names, at most."""
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x5d\0\0": "lzma",
    b"\x04\x22\x4d\x18": "lz4",
    b"\x1f\x9d": "compress",
}
_ARCHIVES = {b"PK\3\4": "a zip", b"PK\5\6": "a zip", b"7z\xbc\xaf": "a 7z archive", b"Rar!": "a rar archive"}
_CHUNK = 1 << 20


def tar_rows(file: ShardFile) -> Iterator[RawRow]:
    """Return samples in the order of the tar. Raises BadShard (empty, truncated,
    corrupt, oversized), TransientReadError."""
    return bounded(_rows(file), file.size_bytes)


def check_members(file: ShardFile) -> None:
    """Check all headers of a tar to its end, and over what is between them. Raises as `tar_rows`: a tar that is
    damaged anywhere is refused whole, so whoever lands it is told at once."""
    with _opened(file) as tar:
        while (member := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]
            if member.offset_data + member.size > file.size_bytes:
                raise BadShard(
                    Reason.TRUNCATED_FILE, f"member {member.name[:200]!r} goes beyond the end of the file"
                )
        _check_rest(file, tar.offset)


def _rows(file: ShardFile) -> Iterator[RawRow]:
    with _opened(file) as tar:
        yield from _samples(tar)
        _check_rest(file, tar.offset)


@contextlib.contextmanager
def _opened(file: ShardFile) -> Iterator[tarfile.TarFile]:
    _check_ends(file)
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as tar:
            yield tar
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
    """Raise BadShard for a tar without blocks of zeros at its end: it was cut off, perhaps cleanly between members."""
    size = file.size_bytes
    if size == 0:
        raise BadShard(Reason.EMPTY_FILE, "the file has no bytes")
    head = file.head(_BLOCK)
    if not any(head):
        raise BadShard(Reason.EMPTY_FILE, "the tar has no members")
    packed = next((name for start, name in _PACKED.items() if head.startswith(start)), None)
    if packed is not None:
        raise BadShard(Reason.CORRUPT_FILE, f"the tar is compressed with {packed}; land it uncompressed")
    other = next((name for start, name in _ARCHIVES.items() if head.startswith(start)), None)
    if other is not None:
        raise BadShard(Reason.CORRUPT_FILE, f"this is {other}, no tar; unpack it, and land the folder")
    try:
        tarfile.TarInfo.frombuf(head, "utf-8", "surrogateescape")
    except tarfile.HeaderError as error:
        raise BadShard(Reason.CORRUPT_FILE, f"no tar header at the start: {error}") from error
    file.seek(max(0, size - _BLOCK))
    tail = file.read(_BLOCK) or b""
    if size % _BLOCK or any(tail):
        raise BadShard(Reason.TRUNCATED_FILE, "no end-of-archive block")
    file.seek(0)


def _check_rest(file: ShardFile, end: int) -> None:
    """Refuse what stands behind the end: a damaged header ends a tar for its reader, as does the first of two."""
    at = end
    while True:
        file.seek(at)  # some readers of a tar leave the file elsewhere
        chunk = file.read(_CHUNK) or b""
        if not chunk:
            return
        if any(chunk):
            place = at + len(chunk) - len(chunk.lstrip(b"\0"))
            raise BadShard(
                Reason.CORRUPT_FILE,
                f"members end at byte {end} of {file.size_bytes}, and data follow at {place}: a damaged header, or "
                "two tars in one file; pack its files again, or land the tars apart",
            )
        at += len(chunk)


def _samples(tar: tarfile.TarFile) -> Iterator[RawRow]:
    row, sample, passed_over = 0, _Sample(""), 0
    while (member := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # or the tar keeps every header in memory
        if member.isdir() or is_foreign(member.name):
            passed_over += not member.isdir()
            continue
        problem = _refuse(member)
        key, extension = _split(member.name)
        if not sample.is_empty and (key != sample.key or problem):
            yield sample.row(row)
            row, sample = row + 1, _Sample(key)
        if problem:
            yield RawRow(row, problem=problem)
            row += 1
            continue
        sample = sample if key == sample.key else _Sample(key)
        sample.add(tar, member, extension)
    if not sample.is_empty:
        yield sample.row(row)
    elif not row:
        more = f": {passed_over} of a system or tool were passed over" if passed_over else ""
        raise BadShard(Reason.EMPTY_FILE, f"the tar has no members to use{more}")


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


class _Sample:
    """The members of one key, of which only those that make a row are read."""

    def __init__(self, key: str) -> None:
        self.key = key
        self._names: list[str] = []
        self._parts: dict[str, bytes] = {}
        self._problem: tuple[Reason, str] | None = None
        self._path: str | None = None

    @property
    def is_empty(self) -> bool:
        return not self._names

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> None:
        """Take one more member."""
        if len(self._names) <= _NAMED:
            self._names.append(f".{extension}" if extension else "(no extension)")
        if f".{extension}" not in IMAGE_SUFFIXES and extension not in _SIDE:
            return
        if f".{extension}" in IMAGE_SUFFIXES:
            self._path = self._path or member.name
        found = _take(tar, member, extension)
        if isinstance(found, tuple):
            self._problem = self._problem or found
        elif self._parts.setdefault(extension, found) != found:
            detail = f"member {member.name[:200]!r} comes twice, with different bytes"
            self._problem = self._problem or (Reason.DUPLICATE_ID, detail)

    def row(self, row: int) -> RawRow:
        """Return the row that the members make."""
        return replace(self._row(row), path=self._path)

    def _row(self, row: int) -> RawRow:
        """Return the row, without its path."""
        images = {f".{name}": data for name, data in self._parts.items() if f".{name}" in IMAGE_SUFFIXES}
        raw = RawRow(row, next(iter(images.values()), None), key=self.key)
        if self._problem or not images:
            return replace(raw, problem=self._problem or (Reason.MISSING_IMAGE, self._no_image()))
        try:
            note = _note(self._parts.get("json"))
        except (ValueError, RecursionError) as error:
            return replace(raw, problem=(Reason.BAD_ATTRIBUTES, f"{self.key[:200]}.json: {error}"))
        if len(images) > 1:
            names = ", ".join(images)
            detail = f"sample {self.key[:200]!r} has {len(images)} images ({names}); keep one of each key"
            return replace(raw, problem=(Reason.DUPLICATE_ID, detail))
        labels = (note.get(name) for name in ("class_name", "cls", "label"))
        label = next((label for label in labels if label is not None), None)
        if label is None:
            label = _decoded(self._parts.get("cls", self._parts.get("txt")))
            if "cls" not in self._parts and _is_caption(label, note):
                label = None
        if label is None:
            return replace(raw, problem=(Reason.MISSING_LABEL, self._no_label(note)))
        item_id, time = note.get("item_id", note.get("id")), note.get("time", note.get("timestamp"))
        return replace(raw, label=label, item_id=item_id, attributes=note.get("attributes"), time=time)

    def _no_label(self, note: Mapping[str, Any]) -> str:
        found = f"; found {', '.join(self._names[:_NAMED])}"[:200]
        found += f" with {sorted(note)[:20]}"[:200] if note else ""
        if "/" in self.key and len(self._names) == 1:
            return f"no class name or label{found}: of a tar of class folders, unpack it and land the folder"
        return f"no class name or label{found}: expected key.cls, key.txt, or key.json with `class_name` or `label`"

    def _no_image(self) -> str:
        names = ", ".join(self._names[:_NAMED]) + (", …" if len(self._names) > _NAMED else "")
        hint = "expected one such as .jpg or .png"
        if any(f".{name.rpartition('.')[2]}" in IMAGE_SUFFIXES for name in self._names):
            hint = "the key ends at the first dot of a name, so write images as key.png, without further dots"
        return f"sample {self.key[:200]!r} has no image among {names[:300]}; {hint}"


def _note(data: bytes | None) -> dict[str, Any]:
    note = json_once(data) if data is not None else {}
    if not isinstance(note, dict):
        raise ValueError(f"{type(note).__name__}, expected an object")
    return note


def _is_caption(text: str | bytes | None, note: Mapping[str, Any]) -> bool:
    """Return whether a text is one that the JSON beside it calls a caption, as tools that download images write."""
    captions = [note.get(name) for name in ("caption", "prompt")]
    return isinstance(text, str) and text.strip() in [one.strip() for one in captions if isinstance(one, str)]


def _decoded(data: bytes | None) -> str | bytes | None:
    """Return the text of a member, without the mark that Windows puts before it; bytes where it is none."""
    if data is None:
        return None
    try:
        return decoded(data)
    except UnicodeDecodeError:
        return data
