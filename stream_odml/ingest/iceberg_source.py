"""Follow an Iceberg table: each snapshot that added data files is one shard.

The table needs the columns of a Parquet shard, and format version 2 (its snapshots are then numbered). What a deletion
or an update in the table means here is what it means for a Delta table, see `delta_source.py`.

Invariant: the files of a snapshot are written down with the shard, so that it is read the same way after its snapshot
has expired from the table, for as long as its data files are there.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import PurePosixPath
from typing import Any

import pyarrow.fs as pafs
from pyiceberg.manifest import ManifestContent, ManifestEntryStatus
from pyiceberg.table import StaticTable

from stream_odml.ingest.delta_log import hash_of_files
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ManifestFile, ShardManifest, ShardRef, make_shard_id
from stream_odml.ingest.sources import MAX_NEW
from stream_odml.storage.reading import (
    StorageOptions,
    is_remote,
    join,
    local_path,
    s3_filesystem,
    s3_path,
    s3_settings,
)
from stream_odml.storage.regular import is_safe_path

FORMAT = "files"
"""What a `ShardRef` whose manifest lists its files says of its format."""


class SnapshotGap(ValueError):
    """Snapshots expired before they were read here: which rows are new cannot be told any more."""


class IcebergSource:
    """The table in the folder `uri`, from snapshot number `start_version` on. Snapshot 7 of `…/photos` is the shard
    `photos-s00000007`. No catalog is asked: the newest metadata file in the folder counts."""

    def __init__(
        self, uri: str, options: StorageOptions | None = None, start_version: int = 0, max_new: int = MAX_NEW
    ) -> None:
        self.uri = uri.rstrip("/")
        self.options = options
        self.start_version = start_version
        self.max_new = max_new

    def poll(self, known: Collection[str]) -> list[ShardRef]:
        """See `Source`. Order: that of the snapshots. Raises TransientReadError, and SnapshotGap with the remedy."""
        newest = self._newest_metadata()
        if newest is None:
            return []
        try:
            table = StaticTable.from_metadata(newest, _client(self.options))
            snapshots = self._wanted(table, known)
            return [self._describe(table, snapshot) for snapshot in snapshots[: self.max_new]]
        except OSError as error:
            raise TransientReadError(f"{self.uri} cannot be read now: {error}") from error

    def _name(self, number: int) -> str:
        return f"{PurePosixPath(self.uri).name}-s{number:08d}"

    def _newest_metadata(self) -> str | None:
        folder = join(self.uri, "metadata")
        remote = is_remote(self.uri)
        filesystem = s3_filesystem(self.options) if remote else pafs.LocalFileSystem()
        path = s3_path(folder) if remote else str(local_path(folder))
        try:
            listed = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        except OSError as error:
            raise TransientReadError(f"{self.uri} cannot be listed now: {error}") from error
        found = {info.base_name: re.match(r"v?(\d+)[-.].*metadata\.json$", info.base_name) for info in listed}
        numbered = {name: int(match[1]) for name, match in found.items() if match is not None}
        newest = max(numbered, key=lambda name: (numbered[name], name), default=None)
        return None if newest is None else join(folder if remote else path, newest)

    def _wanted(self, table: Any, known: Collection[str]) -> list[Any]:
        """Snapshots of the main branch that are not known, the oldest first."""
        if table.metadata.format_version < 2:
            raise ValueError(f"{self.uri} has Iceberg's format version 1; upgrade the table to version 2")
        line, snapshot = [], table.current_snapshot()
        while snapshot is not None:
            line.append(snapshot)
            parent = snapshot.parent_snapshot_id
            snapshot = None if parent is None else table.snapshot_by_id(parent)
        new = [
            one
            for one in reversed(line)
            if one.sequence_number >= self.start_version and self._name(one.sequence_number) not in known
        ]
        # The oldest names no parent any more when that has expired, but numbers begin at 1 and follow each other.
        if new and new[0] is line[-1] and (number := new[0].sequence_number) > max(1, self.start_version):
            others = {one.sequence_number for one in table.snapshots()}
            if number - 1 not in others and self._name(number - 1) not in known:
                raise SnapshotGap(
                    f"{self.uri}: snapshots before number {number} have expired and were not read; set "
                    f"source.start_version: {number} in the configuration, and land the older rows once with "
                    "`stream-odml ingest FILE INBOX`"
                )
        return new

    def _describe(self, table: Any, snapshot: Any) -> ShardRef:
        files = tuple(sorted(self._added(table, snapshot), key=lambda file: file.path))
        number, name = snapshot.sequence_number, self._name(snapshot.sequence_number)
        shard_id = make_shard_id(name, hash_of_files(number, files))
        place = self.uri if is_remote(self.uri) else str(local_path(self.uri).absolute())
        size, time_ns = sum(file.size_bytes for file in files), snapshot.timestamp_ms * 1_000_000
        note = ShardManifest(files=files)
        return ShardRef(shard_id, name, place, FORMAT, size, time_ns, name, note)

    def _added(self, table: Any, snapshot: Any) -> list[ManifestFile]:
        """Data files that the snapshot brought; a compaction (`replace`) brings none."""
        if snapshot.summary is not None and snapshot.summary.operation.value == "replace":
            return []
        found = []
        for manifest in snapshot.manifests(table.io):
            if manifest.content != ManifestContent.DATA or manifest.added_snapshot_id != snapshot.snapshot_id:
                continue
            for entry in manifest.fetch_manifest_entry(table.io):
                if entry.status == ManifestEntryStatus.ADDED:
                    file = entry.data_file
                    found.append(ManifestFile(self._inside(table, file.file_path), file.file_size_in_bytes))
        return found

    def _inside(self, table: Any, path: str) -> str:
        """The path of a data file below the table's folder."""
        inside = path.removeprefix(table.metadata.location.rstrip("/") + "/")
        if not is_safe_path(inside):
            raise ValueError(
                f"{self.uri} names the data file {path[:200]!r}, which lies outside of its folder"
            )
        return inside


def _client(options: StorageOptions | None) -> dict[str, str]:
    """The options as the library names them."""
    known = s3_settings(options)
    named = {
        "s3.endpoint": known.endpoint,
        "s3.access-key-id": known.key,
        "s3.secret-access-key": known.secret,
        "s3.session-token": known.token,
        "s3.region": known.region,
    }
    return {name: value for name, value in named.items() if value is not None}
