"""Follow a Delta table: each version that added data is one shard. The table needs the columns of a Parquet shard."""

from __future__ import annotations

import re
from collections.abc import Container

import pyarrow.fs as pafs

from stream_odml.ingest.delta_log import read_commit
from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard import ShardRef, make_shard_id
from stream_odml.ingest.versioned_table import VersionedTable, hash_of_files
from stream_odml.storage.reading import is_remote, join, local_path, s3_filesystem, s3_path


class DeltaTableSource(VersionedTable):
    """See `VersionedTable`."""

    def poll(self, known: Container[str]) -> list[ShardRef]:
        """See `Source`. Order: version. A version without new data gives a shard without rows.

        Raises TransientReadError, and VersionsGone with the remedy when versions are missing.
        """
        found: list[ShardRef] = []
        version = self.start_version
        while len(found) < self.max_new:
            name = self.name(version)
            if name not in known:
                try:
                    found.append(self._describe(name, version))
                except BadShard as error:
                    if error.reason is not Reason.MISSING_FILE:
                        raise
                    if not found:
                        self._check_gap(version)
                    return found
            version += 1
        return found

    def _describe(self, name: str, version: int) -> ShardRef:
        files, time_ns = read_commit(self.uri, version, self.options)
        shard_id = make_shard_id(name, hash_of_files(version, files))
        size = sum(file.size_bytes for file in files)
        return ShardRef(shard_id, name, f"{self.place}#{version}", "delta", size, time_ns, name)

    def _check_gap(self, version: int) -> None:
        log = join(self.uri, "_delta_log")
        remote = is_remote(self.uri)
        filesystem = s3_filesystem(self.options) if remote else pafs.LocalFileSystem()
        path = s3_path(log) if remote else str(local_path(log))
        listed = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        commits = [
            int(info.base_name[:20]) for info in listed if re.fullmatch(r"\d{20}\.json", info.base_name)
        ]
        later = [commit for commit in commits if commit > version]
        if later and version not in commits:
            next_one = min(later)
            raise self.gap(f"version {version} is not in the log, the next one there is {next_one}", next_one)
