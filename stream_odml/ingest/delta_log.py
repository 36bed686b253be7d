"""The commit log of a Delta table, read as far as following it needs: which data files a version added.

Invariant: the files of a version are a pure function of its commit file, which is never rewritten. Compaction
(`dataChange: false`) adds no data and gives no files.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from urllib.parse import unquote

from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard import ManifestFile, ShardRef
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.storage.reading import StorageOptions, join
from stream_odml.storage.regular import is_safe_path


def commit_path(uri: str, version: int) -> str:
    """Where the commit of a version lies."""
    return join(uri, f"_delta_log/{version:020d}.json")


def read_commit(
    uri: str, version: int, options: StorageOptions | None
) -> tuple[tuple[ManifestFile, ...], int]:
    """The files that `version` added, in a fixed order, and its time in ns. Raises BadShard(missing_file)."""
    with ShardFile(commit_path(uri, version), options) as file:
        data = file.readall() or b""
    files: list[ManifestFile] = []
    time_ms = 0
    try:
        for line in data.splitlines():
            action = json.loads(line)
            time_ms = int(action.get("commitInfo", {}).get("timestamp", time_ms))
            if action.get("add", {}).get("dataChange"):
                files.append(_added(action["add"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, BadShard):
            raise
        raise BadShard(Reason.BAD_MANIFEST, f"commit {version} of {uri}: {error}", data[:32]) from error
    return tuple(sorted(files, key=lambda file: file.path)), time_ms * 1_000_000


def _added(add: dict[str, Any]) -> ManifestFile:
    path = unquote(add["path"])
    if not is_safe_path(path):
        raise BadShard(Reason.UNSAFE_PATH, f"the commit names {path[:200]!r}, which leaves the table")
    values = tuple(sorted((key, value) for key, value in add.get("partitionValues", {}).items() if value))
    return ManifestFile(path, int(add["size"]), "", values)


def hash_of_files(version: int, files: tuple[ManifestFile, ...]) -> str:
    """A content hash without reading the data: Delta's files are named at random and never rewritten."""
    return hashlib.sha256(json.dumps([version, [(f.path, f.size_bytes) for f in files]]).encode()).hexdigest()


def delta_files(ref: ShardRef, options: StorageOptions | None) -> tuple[ManifestFile, ...]:
    """The files of a shard that is one version (`<table uri>#<version>`)."""
    uri, _, version = ref.uri.partition("#")
    files, _ = read_commit(uri, int(version), options)
    if not hash_of_files(int(version), files).startswith(ref.content_hash):
        raise BadShard(Reason.CHANGED_WHILE_READ, f"version {version} of {uri} is not the one that was seen")
    return files
