"""Rows of a folder shard: `_manifest.json` names its files; an image's class is the folder it lies in, or what the
manifest says of it.

Files may also be tables or tars, whose rows then follow one another. A file that is not the one the manifest declares
spoils its own row only: the identity of the shard is the manifest, and every other file still matches it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath

from stream_odml.ingest.lance_file import LANCE
from stream_odml.ingest.rawrow import ANY_CONTENT, MAX_IMAGE_BYTES, Content, RawRow
from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard import (
    FILE_FORMATS,
    MANIFEST_NAME,
    ManifestFile,
    ShardManifest,
    ShardRef,
    format_of,
)
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.ingest.tables import table_rows
from stream_odml.ingest.tars import tar_rows
from stream_odml.storage.reading import StorageOptions, is_remote, join, local_path

_FOREIGN_TABLE = frozenset({Reason.WRONG_SCHEMA, Reason.EMPTY_FILE})


def read_manifest(uri: str, options: StorageOptions | None) -> tuple[ShardManifest, str]:
    """Return the manifest of the folder at `uri` and the sha256 of its bytes, which is the content hash
    of the shard."""
    with ShardFile(join(uri, MANIFEST_NAME), options) as file:
        data = file.readall() or b""
    return ShardManifest.from_bytes(data), hashlib.sha256(data).hexdigest()


def folder_rows(
    ref: ShardRef, options: StorageOptions | None, contents: Sequence[Content] = ANY_CONTENT
) -> Iterator[RawRow]:
    """Yield rows in the order of the manifest. Raises BadShard(bad_manifest | changed_while_read | …)."""
    manifest, sha256 = read_manifest(ref.uri, options)
    if not sha256.startswith(ref.content_hash):
        raise BadShard(Reason.CHANGED_WHILE_READ, "the manifest is no longer the one that was seen")
    yield from parts_rows(ref.uri, manifest.files, options, contents)


def parts_rows(
    uri: str,
    files: tuple[ManifestFile, ...],
    options: StorageOptions | None,
    contents: Sequence[Content] = ANY_CONTENT,
) -> Iterator[RawRow]:
    """Yield rows of several files below `uri`, numbered on from file to file."""
    row = 0
    for file in files:
        kind = LANCE if file.path.endswith(f".{LANCE}") else format_of(file.path)
        if kind == LANCE or kind in FILE_FORMATS.values():
            for raw in _part(uri, file, kind, options, contents):
                inside = f"/{raw.path}" if raw.path is not None else f"#{raw.row}"
                yield replace(raw, row=row, path=f"{file.path}{inside}")
                row += 1
        else:
            yield _image(uri, file, row, options)
            row += 1


def _part(
    uri: str, declared: ManifestFile, kind: str, options: StorageOptions | None, contents: Sequence[Content]
) -> Iterator[RawRow]:
    """Rows of a table or tar. One that holds no rows of ours from its start is one row, which says why."""
    if not _inside(uri, declared.path):
        yield RawRow(0, problem=(Reason.UNSAFE_PATH, f"{declared.path!r} leads out of the shard"))
        return
    with ShardFile(join(uri, declared.path), options) as file:
        if file.size_bytes != declared.size_bytes or (declared.sha256 and _sha256(file) != declared.sha256):
            raise BadShard(
                Reason.HASH_MISMATCH, f"{declared.path} is not the file that the manifest declares"
            )
        count = 0
        try:
            values = dict(declared.values)
            for raw in tar_rows(file) if kind == "tar" else table_rows(file, kind, values, contents):
                yield raw
                count += 1
        except BadShard as error:
            if count or error.reason not in _FOREIGN_TABLE:
                raise
            yield RawRow(0, problem=(error.reason, f"{declared.path}: {error.detail}"))


def _sha256(file: ShardFile) -> str:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
    file.seek(0)
    return digest


def _image(uri: str, declared: ManifestFile, row: int, options: StorageOptions | None) -> RawRow:
    folder = PurePosixPath(declared.path).parent.as_posix()
    values = dict(declared.values)
    label = values.get("class_name", None if folder == "." else folder)
    raw = RawRow(row, None, label, path=declared.path)
    if declared.size_bytes > MAX_IMAGE_BYTES:
        return replace(raw, problem=(Reason.OVERSIZED, f"{declared.size_bytes} bytes of image"))
    if not _inside(uri, declared.path):
        return replace(raw, problem=(Reason.UNSAFE_PATH, f"{declared.path!r} leads out of the shard"))
    try:
        with ShardFile(join(uri, declared.path), options) as file:
            data = file.read(declared.size_bytes + 1) or b"" if is_remote(uri) else file.readall() or b""
    except BadShard as error:
        return replace(raw, problem=(error.reason, f"{declared.path}: {error.detail}"))
    if declared.sha256 and hashlib.sha256(data).hexdigest() != declared.sha256:
        detail = f"{declared.path} is not the file that the manifest declares"
        return replace(raw, image=data, problem=(Reason.HASH_MISMATCH, detail))
    said = values.get
    return replace(raw, image=data, item_id=said("item_id"), attributes=said("attributes"), time=said("time"))


def _inside(uri: str, path: str) -> bool:
    """Whether symbolic links keep the file within its shard."""
    if is_remote(uri):
        return True
    root = local_path(uri).resolve()
    return (root / path).resolve().is_relative_to(root)
