"""Read a shard: every row comes out once, as a usable item or as a problem with its reason.

Invariant: `read_shard` is a pure function of the shard: same reference, same rows, same order, same numbers.
Memory is bounded by one record batch (tables: one row group) or one image.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from stream_odml.ingest import fields
from stream_odml.ingest.delta_source import delta_files
from stream_odml.ingest.lance_file import LANCE
from stream_odml.ingest.message_range import FORMAT as MESSAGES
from stream_odml.ingest.message_range import message_rows
from stream_odml.ingest.rawrow import ANY_CONTENT, MAX_IMAGE_BYTES, Content, RawRow
from stream_odml.ingest.reasons import FIRST_BYTES, BadShard, Reason, RowError, RowProblem
from stream_odml.ingest.shard import FILE_FORMATS, ManifestFile, ShardManifest, ShardRef, format_of
from stream_odml.ingest.shard_file import ShardFile, read_manifest
from stream_odml.ingest.tables import table_rows
from stream_odml.ingest.tars import check_members, tar_rows
from stream_odml.ingest.vectors import Vector, checked_vector
from stream_odml.storage.reading import StorageOptions, is_remote, join, local_path

_FOREIGN_TABLE = frozenset({Reason.WRONG_SCHEMA, Reason.SERVED_VECTORS, Reason.EMPTY_FILE})
UNLABELLED = ""
"""The class of an item whose class nobody has said yet."""
CHECKED_ROWS = 1000
"""Rows that a producer's file is searched for one that can be used, before it lands."""


@dataclass(frozen=True)
class RawItem:
    """One usable row: its image is still encoded. `item_id` is the producer's, or `<shard_id>/<row>`. The class of a
    vector may be empty: nobody has said it yet."""

    row: int
    item_id: str
    class_name: str
    image: bytes
    attributes: dict[str, str]
    time: datetime | None
    vector: Vector | None = field(default=None, compare=False)
    """In place of an image. One without either is a label for an item that is stored."""


def read_shard(
    ref: ShardRef, storage_options: StorageOptions | None = None, contents: Sequence[Content] = ANY_CONTENT
) -> Iterator[RawItem | RowProblem]:
    """Return all rows of a shard in order. `contents` that a table may have; the first of several counts.

    Raises BadShard when the whole file is refused; that may come after rows were yielded (a corrupt end,
    or changed_while_read), and then none of them counts. Raises TransientReadError when the bytes cannot
    be had now. Images are not decoded here: `decode_image` is where an image turns out to be bad.
    """
    return _checked(raw_rows(ref, storage_options, contents), ref.shard_id)


def read_folder(
    path: Path, files: tuple[ManifestFile, ...], shard_id: str | None = None
) -> Iterator[RawItem | RowProblem]:
    """Return all rows of these files of a folder on this machine, which is no shard; `shard_id` is of the one that it
    would be. Errors as `read_shard`."""
    return _checked(_Rows(None).of_files(str(path.absolute()), files), shard_id or path.name)


def check_rows(path: Path, format: str, constants: Mapping[str, str] | None = None) -> None:
    """Read a table, or the start of a tar and its headers, to the end. Raises ValueError, in words, where no row at its
    start could become an item, or a reader would refuse the file as damaged further on."""
    first: RowProblem | None = None
    with ShardFile(str(path)) as file:
        try:
            rows = _rows_in(file, format, constants)
            for raw in islice(rows, CHECKED_ROWS):
                found = _check(raw, path.name, set())
                if isinstance(found, RawItem):
                    if format == "tar":
                        check_members(file)
                    else:
                        deque(rows, maxlen=0)
                    return
                first = first or found
        except BadShard as error:
            raise ValueError(f"{path} cannot be read: {error.detail} ({error.reason})") from error
    if first is None:
        raise ValueError(f"{path} has no rows: there is nothing to land")
    raise ValueError(f"{path}: no row at its start can be used, the first: {first.detail} ({first.reason})")


def raw_rows(
    ref: ShardRef, options: StorageOptions | None = None, contents: Sequence[Content] = ANY_CONTENT
) -> Iterator[RawRow]:
    """Return all rows of a shard as they were written, unchecked. Errors as `read_shard`."""
    return _Rows(options, contents).of(ref)


def _rows_in(
    file: ShardFile,
    format: str,
    constants: Mapping[str, str] | None,
    contents: Sequence[Content] = ANY_CONTENT,
) -> Iterator[RawRow]:
    if format == MESSAGES:
        return message_rows(file)
    return tar_rows(file) if format == "tar" else table_rows(file, format, constants, contents)


class _Rows:
    """Rows of shards in whatever form they are, from a store with these options."""

    def __init__(self, options: StorageOptions | None, contents: Sequence[Content] = ANY_CONTENT) -> None:
        self._options, self._contents = options, contents

    def of(self, ref: ShardRef) -> Iterator[RawRow]:
        """Yield the rows of a shard."""
        if ref.format == "task":
            self._check_task(ref)
        elif ref.format == "adopted":
            detail = f"{ref.uri} was adopted, and its rows are in the stream root alone; correct and adopt it again"
            raise BadShard(Reason.UNKNOWN_FORMAT, detail)
        elif ref.format == "folder":
            manifest, sha256 = read_manifest(ref.uri, self._options)
            if not sha256.startswith(ref.content_hash):
                raise BadShard(Reason.CHANGED_WHILE_READ, "the manifest is no longer the one that was seen")
            yield from self.of_files(ref.uri, manifest.files)
        elif ref.format == "files" and ref.manifest is not None:
            yield from self._of_table(ref.uri, ref.manifest.files)
        elif ref.format == "delta":
            yield from self._of_table(ref.uri.partition("#")[0], delta_files(ref, self._options))
        else:
            yield from self._of_file(ref)

    def of_files(self, uri: str, files: Iterable[ManifestFile]) -> Iterator[RawRow]:
        """Yield the rows of several files below `uri`, images, tables and tars, numbered on from file to file."""
        row = 0
        for file in files:
            kind = LANCE if file.path.endswith(f".{LANCE}") else format_of(file.path)
            if kind != LANCE and kind not in FILE_FORMATS.values():
                yield replace(self._image(uri, file), row=row)
                row += 1
                continue
            for raw in self._part(uri, file, kind):
                inside = f"/{raw.path}" if raw.path is not None else f"#{raw.row}"
                yield replace(raw, row=row, path=f"{file.path}{inside}")
                row += 1

    def _of_table(self, uri: str, files: Iterable[ManifestFile]) -> Iterator[RawRow]:
        # Names of a table's files say nothing to people.
        return (replace(raw, path=None) for raw in self.of_files(uri, files))

    def _check_task(self, ref: ShardRef) -> None:
        """Raise BadShard for a broken task manifest, which is refused like any other file. A sound one has no rows."""
        with ShardFile(ref.uri, self._options) as file:
            manifest = ShardManifest.from_bytes(file.readall() or b"")
            if not (manifest.task or "").strip() or not manifest.task_complete:
                detail = "a task manifest names its task and says task_complete"
            elif manifest.shards == ():
                detail = "it names no shard, so it closes nothing; leave `shards` out to close all that waits"
            else:
                return
            raise BadShard(Reason.BAD_MANIFEST, detail, file.head())

    def _of_file(self, ref: ShardRef) -> Iterator[RawRow]:
        with ShardFile(ref.uri, self._options) as file:
            if file.size_bytes != ref.size_bytes:
                detail = f"{file.size_bytes} bytes, {ref.size_bytes} when it was seen"
                raise BadShard(Reason.CHANGED_WHILE_READ, detail, file.head())
            try:
                if ref.format == "unknown":
                    expected = (
                        f"{ref.name!r}: expected .parquet, .arrow, .tar, .npz or a folder with a manifest"
                    )
                    raise BadShard(Reason.UNKNOWN_FORMAT if ref.size_bytes else Reason.EMPTY_FILE, expected)
                yield from _rows_in(file, ref.format, None, self._contents)
            except BadShard as error:
                if _has_changed(file, ref):
                    error = BadShard(
                        Reason.CHANGED_WHILE_READ, f"while it was read; it then failed with {error}"
                    )
                raise BadShard(error.reason, error.detail, file.head(FIRST_BYTES)) from error
            if _has_changed(file, ref):
                detail = "its content is not the one that was seen"
                raise BadShard(Reason.CHANGED_WHILE_READ, detail, file.head(FIRST_BYTES))

    def _part(self, uri: str, declared: ManifestFile, kind: str) -> Iterator[RawRow]:
        """Yield rows of a table or tar. One that holds no rows of ours from its start is one row, which says why."""
        if not _is_inside(uri, declared.path):
            yield RawRow(0, problem=_leads_out(declared))
            return
        with ShardFile(join(uri, declared.path), self._options) as file:
            if file.size_bytes != declared.size_bytes or (
                declared.sha256 and file.sha256() != declared.sha256
            ):
                raise BadShard(*_is_another(declared))
            count = 0
            try:
                for raw in _rows_in(file, kind, dict(declared.values), self._contents):
                    yield raw
                    count += 1
            except BadShard as error:
                if count or error.reason not in _FOREIGN_TABLE:
                    raise
                yield RawRow(0, problem=(error.reason, f"{declared.path}: {error.detail}"))

    def _image(self, uri: str, declared: ManifestFile) -> RawRow:
        """Return the row of an image. One that is not the file that the manifest declares spoils its own row only."""
        folder = PurePosixPath(declared.path).parent.as_posix()
        said = dict(declared.values)
        label = said.pop("class_name", None if folder == "." else folder)
        raw = RawRow(0, None, label, path=declared.path)
        if declared.size_bytes > MAX_IMAGE_BYTES:
            return replace(raw, problem=(Reason.OVERSIZED, f"{declared.size_bytes} bytes of image"))
        if not _is_inside(uri, declared.path):
            return replace(raw, problem=_leads_out(declared))
        try:
            with ShardFile(join(uri, declared.path), self._options) as file:
                data = file.read(declared.size_bytes + 1) or b"" if is_remote(uri) else file.readall() or b""
        except BadShard as error:
            return replace(raw, problem=(error.reason, f"{declared.path}: {error.detail}"))
        if declared.sha256 and hashlib.sha256(data).hexdigest() != declared.sha256:
            return replace(raw, image=data, problem=_is_another(declared))
        item_id, attributes, time = (said.get(part) for part in ("item_id", "attributes", "time"))
        return replace(raw, image=data, item_id=item_id, attributes=attributes, time=time)


def _leads_out(declared: ManifestFile) -> tuple[Reason, str]:
    return Reason.UNSAFE_PATH, f"{declared.path!r} leads out of the shard"


def _is_another(declared: ManifestFile) -> tuple[Reason, str]:
    return Reason.HASH_MISMATCH, f"{declared.path} is not the file that the manifest declares"


def _is_inside(uri: str, path: str) -> bool:
    """Return whether symbolic links keep the file within its shard."""
    if is_remote(uri):
        return True
    root = local_path(uri).resolve()
    return (root / path).resolve().is_relative_to(root)


def _has_changed(file: ShardFile, ref: ShardRef) -> bool:
    return not ref.moved and file.has_changed(ref.content_hash)


def with_path(path: str | None, detail: str) -> str:
    """Return a problem's detail that names its file, unless it does already."""
    named = path is None or path in detail
    return detail if named else f"{fields.path_text(path or '')}: {detail}"


def _checked(rows: Iterator[RawRow], shard_id: str) -> Iterator[RawItem | RowProblem]:
    seen: set[str] = set()
    return (_check(raw, shard_id, seen) for raw in rows)


def _check(raw: RawRow, shard_id: str, seen: set[str]) -> RawItem | RowProblem:
    first = raw.image[:FIRST_BYTES] if raw.image else b""
    if raw.problem is not None:
        reason, detail = raw.problem
        return RowProblem(raw.row, reason, with_path(raw.path, detail), first)
    try:
        vector = None if raw.vector is None else checked_vector(np.frombuffer(raw.vector, "<f4"))
        if vector is None and not raw.is_label:
            _check_image(raw.image)
        name = _class_name(raw)
        given = fields.item_id(raw.item_id)
        if given is None and raw.is_label:
            raise RowError(Reason.BAD_ID, "a label without an id says the class of no item")
        attributes = fields.with_path(fields.attributes(raw.attributes), raw.path)
        time = fields.when(raw.time)
        for identity in (f"id {given}" if given is not None else None, f"key {raw.key}" if raw.key else None):
            if identity in seen:
                raise RowError(Reason.DUPLICATE_ID, f"{identity} came before in this shard")
            if identity is not None:
                seen.add(identity)
    except RowError as error:
        return RowProblem(raw.row, error.reason, with_path(raw.path, error.detail), first)
    item_id = f"{shard_id}/{raw.row}" if given is None else given
    return RawItem(raw.row, item_id, name, raw.image or b"", attributes, time, vector)


def _check_image(image: bytes | None) -> None:
    if not image:
        raise RowError(Reason.EMPTY_IMAGE, "the image has no bytes")
    if len(image) > MAX_IMAGE_BYTES:
        raise RowError(Reason.OVERSIZED, f"{len(image)} bytes of image, at most {MAX_IMAGE_BYTES}")


def _class_name(raw: RawRow) -> str:
    """Return the class; of a vector it may be missing."""
    try:
        return fields.class_name(raw.label, raw.names)
    except RowError as error:
        if raw.vector is not None and error.reason is Reason.MISSING_LABEL:
            return UNLABELLED
        raise
