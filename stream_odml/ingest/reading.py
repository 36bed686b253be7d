"""Read a shard: every row comes out once, as a usable item or as a problem with its reason.

Invariant: `read_shard` is a pure function of the shard: same reference, same rows, same order, same numbers.
Memory is bounded by one record batch (tables: one row group) or one image.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np

from stream_odml.ingest import fields
from stream_odml.ingest.delta_source import delta_files
from stream_odml.ingest.folders import folder_rows, parts_rows
from stream_odml.ingest.message_range import FORMAT as MESSAGES
from stream_odml.ingest.message_range import message_rows
from stream_odml.ingest.rawrow import ANY_CONTENT, MAX_IMAGE_BYTES, Content, RawRow
from stream_odml.ingest.reasons import FIRST_BYTES, BadShard, Reason, RowError, RowProblem
from stream_odml.ingest.shard import ManifestFile, ShardManifest, ShardRef
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.ingest.tables import table_rows
from stream_odml.ingest.tars import check_members, tar_rows
from stream_odml.ingest.vectors import Vector, checked_vector
from stream_odml.storage.reading import StorageOptions

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
    """Yield all rows of a shard in order. `contents` that a table may have; the first of several counts.

    Raises BadShard when the whole file is refused; that may come after rows were yielded (a corrupt end,
    or changed_while_read), and then none of them counts. Raises TransientReadError when the bytes cannot
    be had now. Images are not decoded here: `decode_image` is where an image turns out to be bad.
    """
    seen: set[str] = set()
    for raw in raw_rows(ref, storage_options, contents):
        yield _check(raw, ref.shard_id, seen)


def read_folder(path: Path, files: tuple[ManifestFile, ...]) -> Iterator[RawItem | RowProblem]:
    """Yield all rows of these files of a folder on this machine, which is no shard. Errors as `read_shard`."""
    seen: set[str] = set()
    for raw in parts_rows(str(path.absolute()), files, None):
        yield _check(raw, path.name, seen)


def check_rows(path: Path, format: str, constants: Mapping[str, str] | None = None) -> None:
    """Read a table, or the start of a tar and its headers, to the end. Raises ValueError, in words, where no row at its
    start could become an item, or a reader would refuse the file as damaged further on."""
    first: RowProblem | None = None
    with ShardFile(str(path)) as file:
        try:
            rows = tar_rows(file) if format == "tar" else table_rows(file, format, constants)
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
    """Yield all rows of a shard as they were written, unchecked. Errors as `read_shard`."""
    if ref.format == "task":
        _check_task(ref, options)
        return
    if ref.format == "adopted":
        raise BadShard(Reason.UNKNOWN_FORMAT, f"{ref.uri} was adopted: its rows are in the stream root alone")
    if ref.format == "folder":
        yield from folder_rows(ref, options, contents)
    elif ref.format == "files" and ref.manifest is not None:
        parts = parts_rows(ref.uri, ref.manifest.files, options, contents)
        yield from (replace(raw, path=None) for raw in parts)
    elif ref.format == "delta":
        parts = parts_rows(ref.uri.partition("#")[0], delta_files(ref, options), options, contents)
        # Names of a table's files say nothing to people.
        yield from (replace(raw, path=None) for raw in parts)
    else:
        yield from _single_file(ref, options, contents)


def _check_task(ref: ShardRef, options: StorageOptions | None) -> None:
    """A task manifest has no rows; a broken one is refused like any other file."""
    with ShardFile(ref.uri, options) as file:
        manifest = ShardManifest.from_bytes(file.readall() or b"")
        if not (manifest.task or "").strip() or not manifest.task_complete:
            detail = "a task manifest names its task and says task_complete"
        elif manifest.shards == ():
            detail = "it names no shard, so it closes nothing; leave `shards` out to close all that waits"
        else:
            return
        raise BadShard(Reason.BAD_MANIFEST, detail, file.head())


def _single_file(
    ref: ShardRef, options: StorageOptions | None, contents: Sequence[Content]
) -> Iterator[RawRow]:
    with ShardFile(ref.uri, options) as file:
        if file.size_bytes != ref.size_bytes:
            detail = f"{file.size_bytes} bytes, {ref.size_bytes} when it was seen"
            raise BadShard(Reason.CHANGED_WHILE_READ, detail, file.head())
        try:
            if ref.format == "unknown":
                expected = f"{ref.name!r}: expected .parquet, .arrow, .tar, .npz or a folder with a manifest"
                raise BadShard(Reason.UNKNOWN_FORMAT if ref.size_bytes else Reason.EMPTY_FILE, expected)
            if ref.format == MESSAGES:
                yield from message_rows(file)
            elif ref.format == "tar":
                yield from tar_rows(file)
            else:
                yield from table_rows(file, ref.format, None, contents)
        except BadShard as error:
            if _has_changed(file, ref):
                error = BadShard(Reason.CHANGED_WHILE_READ, f"while it was read; it then failed with {error}")
            raise BadShard(error.reason, error.detail, file.head(FIRST_BYTES)) from error
        if _has_changed(file, ref):
            detail = "its content is not the one that was seen"
            raise BadShard(Reason.CHANGED_WHILE_READ, detail, file.head(FIRST_BYTES))


def _has_changed(file: ShardFile, ref: ShardRef) -> bool:
    return not ref.moved and file.has_changed(ref.content_hash)


def with_path(path: str | None, detail: str) -> str:
    """Return a problem's detail that names its file, unless it does already."""
    named = path is None or path in detail
    return detail if named else f"{fields.path_text(path or '')}: {detail}"


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
    """The class; of a vector it may be missing."""
    try:
        return fields.class_name(raw.label, raw.names)
    except RowError as error:
        if raw.vector is not None and error.reason is Reason.MISSING_LABEL:
            return UNLABELLED
        raise
