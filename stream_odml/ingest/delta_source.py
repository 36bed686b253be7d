"""Follow a Delta table: each version that added data is one shard.

The table needs the columns of a Parquet shard. Follow append-only tables, or give them an `id` column:
rows that an update writes again then replace the item of that id; without one they would come as new
items. A deletion in the table deletes nothing here (that is what `forget` is for).
"""

from __future__ import annotations

import re
from collections.abc import Container
from pathlib import PurePosixPath

import pyarrow.fs as pafs

from stream_odml.ingest.delta_log import hash_of_files, read_commit
from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard import ShardRef, make_shard_id
from stream_odml.ingest.sources import MAX_NEW
from stream_odml.storage.reading import StorageOptions, is_remote, join, local_path, s3_filesystem, s3_path


class DeltaLogGap(ValueError):
    """Versions were cleaned out of the table's log before they were read: nothing says which rows were theirs."""


class DeltaTableSource:
    """The table at `uri` from `start_version` on. The shard of version 7 of `…/photos` is named `photos-v00000007`."""

    def __init__(
        self, uri: str, options: StorageOptions | None = None, start_version: int = 0, max_new: int = MAX_NEW
    ) -> None:
        self.uri = uri.rstrip("/")
        self.options = options
        self.start_version = start_version
        self.max_new = max_new

    def poll(self, known: Container[str]) -> list[ShardRef]:
        """See `Source`. Order: version. A version without new data gives a shard without rows.

        Raises TransientReadError, and DeltaLogGap with the remedy when versions are missing.
        """
        found: list[ShardRef] = []
        version = self.start_version
        while len(found) < self.max_new:
            name = f"{PurePosixPath(self.uri).name}-v{version:08d}"
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
        place = self.uri if is_remote(self.uri) else str(local_path(self.uri).absolute())
        return ShardRef(shard_id, name, f"{place}#{version}", "delta", size, time_ns, name)

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
            raise DeltaLogGap(
                f"{self.uri}: version {version} is not in the log, the next one there is {min(later)}; set "
                f"source.start_version: {min(later)} in the configuration, and land the older rows once with "
                "`stream-odml ingest FILE INBOX`"
            )
