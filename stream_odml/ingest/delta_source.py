"""Follow a Delta table: each version that added data is one shard. The table needs the columns of a Parquet shard.

Invariant: the files of a version are a pure function of its commit file, which is never rewritten. Compaction
(`dataChange: false`) adds no data and gives no files.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from itertools import count

from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard import ManifestFile, ShardRef, make_shard_id
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.ingest.versioned_table import VersionedTable, hash_of_files
from stream_odml.storage.delta_log import AddedFile, parse_commit
from stream_odml.storage.reading import StorageOptions, join
from stream_odml.storage.regular import is_safe_path


class DeltaTableSource(VersionedTable):
    """See `VersionedTable`."""

    def shards(self, known: Collection[str]) -> Iterator[ShardRef]:
        new = (version for version in count(self.start_version) if self.name(version) not in known)
        for at, version in enumerate(new):
            try:
                ref = self._describe(self.name(version), version)
            except BadShard as error:
                if error.reason is not Reason.MISSING_FILE:
                    raise
                if not at:
                    self._check_gap(version)
                return
            yield ref

    def _describe(self, name: str, version: int) -> ShardRef:
        files, time_ns = read_commit(self.uri, version, self.options)
        shard_id = make_shard_id(name, hash_of_files(version, files))
        size = sum(file.size_bytes for file in files)
        return ShardRef(shard_id, name, f"{self.place}#{version}", "delta", size, time_ns, name)

    def _check_gap(self, version: int) -> None:
        logged = (re.fullmatch(r"(\d{20})\.json", name) for name in self.listed("_delta_log"))
        later = [number for found in logged if found is not None and (number := int(found[1])) >= version]
        if later and version not in later:
            next_one = min(later)
            raise self.gap(f"version {version} is not in the log, the next one there is {next_one}", next_one)


def read_commit(
    uri: str, version: int, options: StorageOptions | None
) -> tuple[tuple[ManifestFile, ...], int]:
    """Return the files that `version` added, in a fixed order, and its time in ns. Raises BadShard(missing_file)."""
    with ShardFile(join(uri, f"_delta_log/{version:020d}.json"), options) as file:
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
