"""The commit log of a Delta table, read as far as following it needs: which data files a version added.

Invariant: the files of a version are a pure function of its commit file, which is never rewritten. Compaction
(`dataChange: false`) adds no data and gives no files.
"""

from __future__ import annotations

from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard import ManifestFile, ShardRef
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.ingest.versioned_table import hash_of_files
from stream_odml.storage.delta_log import AddedFile, parse_commit
from stream_odml.storage.reading import StorageOptions, join
from stream_odml.storage.regular import is_safe_path


def commit_path(uri: str, version: int) -> str:
    """Return where the commit of a version lies."""
    return join(uri, f"_delta_log/{version:020d}.json")


def read_commit(
    uri: str, version: int, options: StorageOptions | None
) -> tuple[tuple[ManifestFile, ...], int]:
    """Return the files that `version` added, in a fixed order, and its time in
    ns. Raises BadShard(missing_file)."""
    with ShardFile(commit_path(uri, version), options) as file:
        data = file.readall() or b""
    try:
        commit = parse_commit(data)
    except ValueError as error:
        raise BadShard(Reason.BAD_MANIFEST, f"commit {version} of {uri}: {error}", data[:32]) from error
    files = sorted(map(_file, (one for one in commit.added if one.is_new_data)), key=lambda file: file.path)
    return tuple(files), commit.time_ms * 1_000_000


def _file(added: AddedFile) -> ManifestFile:
    if not is_safe_path(added.path):
        raise BadShard(Reason.UNSAFE_PATH, f"the commit names {added.path[:200]!r}, which leaves the table")
    values = tuple(sorted((key, value) for key, value in added.partition.items() if value))
    return ManifestFile(added.path, added.size_bytes, "", values)


def delta_files(ref: ShardRef, options: StorageOptions | None) -> tuple[ManifestFile, ...]:
    """Return the files of a shard that is one version (`<table uri>#<version>`)."""
    uri, _, version = ref.uri.partition("#")
    files, _ = read_commit(uri, int(version), options)
    if not hash_of_files(int(version), files).startswith(ref.content_hash):
        raise BadShard(Reason.CHANGED_WHILE_READ, f"version {version} of {uri} is not the one that was seen")
    return files
