"""What a shard is: a name, a place, and an identity made of its name and its content.

Invariant: a shard is immutable, so equal `shard_id` means equal name and equal bytes. A file that is fixed
under its old name has a new content hash and is a new shard.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from dataclasses import asdict, dataclass, field
from pathlib import PurePosixPath
from typing import Any

from stream_odml.ingest.invisible import first_invisible
from stream_odml.ingest.plain import json_once
from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.storage.regular import is_safe_path

MANIFEST_NAME = "_manifest.json"
TASK_SUFFIX = ".task.json"
HASH_CHARS = 16
IMAGE_SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jfi", ".jif", ".pjpeg", ".pjp", ".mpo"),
        *(".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".avif", ".avifs"),
        *(".heic", ".heif", ".hif"),
    }
)
"""Names of image files. The bytes decide what a file is: `decode.py` reads any of its formats under any name."""
_ARROW = dict.fromkeys((".arrow", ".arrows", ".feather", ".ipc"), "arrow")
FILE_FORMATS = {".parquet": "parquet", **_ARROW, ".tar": "tar", ".npz": "npz"}


@dataclass(frozen=True)
class ManifestFile:
    """One file of a shard of several. `path` is relative and uses "/"; an empty `sha256` is not checked. `values` are
    columns that hold for every row of the file (a Delta table keeps partition columns so)."""

    path: str
    size_bytes: int
    sha256: str = ""
    values: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class ShardManifest:
    """What a producer says about a shard or a task. `task` names the task, `task_complete` says that it is whole.
    `shards` of a task manifest names the shards of the task, which may land after it; with None, everything that landed
    before the manifest and still waits belongs to it. A task manifest that names none (an empty list) is refused."""

    task: str | None = None
    task_complete: bool = False
    shards: tuple[str, ...] | None = ()
    files: tuple[ManifestFile, ...] = ()

    def to_bytes(self) -> bytes:
        """Return canonical JSON: equal manifests give equal bytes."""
        body = {"format": 1, **asdict(self)}
        body["files"] = [_file_to_json(file) for file in self.files]
        return json.dumps(body, indent=1, sort_keys=True).encode()

    @staticmethod
    def from_bytes(data: bytes) -> ShardManifest:
        """Parse and check. Raises BadShard(bad_manifest), or unsafe_path for one that leaves the shard."""
        try:
            body = json_once(data)
            if body["format"] != 1:
                raise ValueError(f"format {body['format']!r}, expected 1")
            task = body.get("task")
            if task is not None and not isinstance(task, str):
                raise ValueError(f"task {task!r} is not a string")
            if task is not None and (hidden := first_invisible(task)) is not None:
                raise ValueError(
                    f"task {task!r:.80} has the invisible character U+{ord(hidden):04X}; leave it out"
                )
            files = tuple(_file_from_json(item) for item in body.get("files", ()))
            complete = body.get("task_complete", False)
            if not isinstance(complete, bool):
                raise ValueError(f"task_complete {complete!r}: expected true or false")
            return ShardManifest(task, complete, _names_from_json(body.get("shards")), files)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            if isinstance(error, BadShard):
                raise
            raise BadShard(Reason.BAD_MANIFEST, f"{type(error).__name__}: {error}", data[:32]) from error


def _names_from_json(names: Any) -> tuple[str, ...] | None:
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"shards {names!r:.80}: expected a list of shard names, or null for all that wait")
    return None if names is None else tuple(names)


def _file_to_json(file: ManifestFile) -> dict[str, Any]:
    body: dict[str, Any] = {"path": file.path, "size_bytes": file.size_bytes, "sha256": file.sha256}
    return body | ({"values": dict(file.values)} if file.values else {})


def _file_from_json(item: dict[str, Any]) -> ManifestFile:
    path = str(item["path"])
    if not is_safe_path(path):
        raise BadShard(Reason.UNSAFE_PATH, f"the manifest names {path[:200]!r}, which leaves the shard")
    values = tuple(sorted((str(k), str(v)) for k, v in item.get("values", {}).items()))
    return ManifestFile(path, int(item["size_bytes"]), str(item.get("sha256", "")), values)


@dataclass(frozen=True)
class ShardRef:
    """Everything needed to read a shard again, anywhere. Small, and JSON both ways, so a ledger can keep it.

    `shard_id` is `<name>-<16 hex of the content hash>` and safe as a file name. `stamp` is what a source
    compares before it hashes anything (for a local file name, size and time of change). `format` is
    parquet, arrow, tar, npz, folder, delta, messages, files (a table's, which the manifest names), task (a task
    manifest: no rows), adopted (a block of a gallery that was taken over: its rows are in the store alone) or
    unknown. But for `files`, `manifest.files` stays with the shard.
    """

    shard_id: str
    name: str
    uri: str
    format: str
    size_bytes: int
    mtime_ns: int
    stamp: str
    manifest: ShardManifest | None = field(default=None)
    erases: tuple[str, ...] = ()
    """Ids of items that are erased before the shard lands: of a log's messages without a value."""
    moved: bool = False
    """Whether its file was copied to where it lies, with the stream root that it belongs to: another store gives equal
    bytes another content hash."""

    @property
    def content_hash(self) -> str:
        """The 16 hex digits at the end of the id."""
        return self.shard_id[-HASH_CHARS:]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        body = asdict(self)
        body["manifest"] = None if self.manifest is None else json.loads(self.manifest.to_bytes())
        if not self.erases:
            del body["erases"]  # most have none, and the ledger keeps a row for each shard
        if not self.moved:
            del body["moved"]
        return body

    @staticmethod
    def from_dict(body: dict[str, Any]) -> ShardRef:
        """Return the inverse of `to_dict`."""
        note = body["manifest"]
        manifest = None if note is None else ShardManifest.from_bytes(json.dumps(note).encode())
        return ShardRef(**{**body, "manifest": manifest, "erases": tuple(body.get("erases", ()))})


def make_shard_id(name: str, content_sha256: str) -> str:
    """Return `<name>-<hash>`; a name with other than word characters, dot and dash is made safe and told
    apart by a hash."""
    slug = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:100].lstrip("._-") or "shard"
    return f"{_apart(slug, name)}-{content_sha256[:HASH_CHARS]}"


def shard_name(text: str) -> str:
    """Return the name of a shard made from the name of a folder or file: `my photos` becomes `my_photos-b4b3ca`.

    A name that every file system takes stays as it is; another one gets six digits of its hash, so that
    `photos (1)` and `photos [1]` stay apart. Accents that are composed differently give an equal name.
    """
    text = unicodedata.normalize("NFC", text)
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    slug = re.sub(r"[^A-Za-z0-9._-]+", "_", plain)[:100].strip("._-") or "shard"
    return _apart(slug, text)


def _apart(slug: str, text: str) -> str:
    """Return a name made of a text, with six digits of the hash of that where it is another one."""
    digest = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
    return slug if slug == text else f"{slug}-{digest[:6]}"


def format_of(name: str) -> str:
    """Return the format that a file name announces: parquet, arrow, tar, npz, task or unknown."""
    if name.endswith(TASK_SUFFIX):
        return "task"
    return FILE_FORMATS.get(PurePosixPath(name).suffix.lower(), "unknown")


def is_hidden(name: str) -> bool:
    """Return names that sources skip: a leading dot or underscore (writes in progress, bookkeeping)."""
    return name.startswith((".", "_"))
