"""Follow an Iceberg table: each snapshot that added data files is one shard.

The table needs the columns of a Parquet shard, and format version 2 (its snapshots are then numbered).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from typing import Any

from pyiceberg.manifest import ManifestContent, ManifestEntryStatus
from pyiceberg.table import StaticTable

from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ManifestFile, ShardRef
from stream_odml.ingest.versioned_table import VersionedTable
from stream_odml.storage.reading import StorageOptions, join, s3_settings
from stream_odml.storage.regular import is_safe_path


class IcebergSource(VersionedTable):
    """See `VersionedTable`; versions are snapshots, by their number. Snapshot 7 of `…/photos` is the shard
    `photos-s00000007`. No catalog is asked: the newest metadata file in the folder counts."""

    letter = "s"

    def shards(self, known: Collection[str]) -> Iterator[ShardRef]:
        newest = self._newest_metadata()
        if newest is None:
            return
        try:
            table = StaticTable.from_metadata(newest, _client(self.options))
            for one in self._wanted(table, known):
                files, time_ns = self._added(table, one), one.timestamp_ms * 1_000_000
                yield self.shard_of_files(one.sequence_number, files, time_ns)
        except OSError as error:
            raise TransientReadError(f"{self.uri} cannot be read now: {error}") from error

    def _newest_metadata(self) -> str | None:
        found = (re.match(r"v?(\d+)[-.].*metadata\.json$", name) for name in self.listed("metadata"))
        newest = max(((int(match[1]), match[0]) for match in found if match is not None), default=None)
        return None if newest is None else join(self.uri.removeprefix("file://"), f"metadata/{newest[1]}")

    def _wanted(self, table: Any, known: Collection[str]) -> list[Any]:
        """Return snapshots of the main branch that are not known, the oldest first."""
        if table.metadata.format_version < 2:
            raise ValueError(f"{self.uri} has Iceberg's format version 1; upgrade the table to version 2")
        line, snapshot = [], table.current_snapshot()
        while snapshot is not None:
            line.append(snapshot)
            parent = snapshot.parent_snapshot_id
            snapshot = None if parent is None else table.snapshot_by_id(parent)
        wanted = (one for one in reversed(line) if one.sequence_number >= self.start_version)
        new = [one for one in wanted if self.name(one.sequence_number) not in known]
        # The oldest names no parent any more when that has expired, but numbers begin at 1 and follow each other.
        if new and new[0] is line[-1] and (number := new[0].sequence_number) > max(1, self.start_version):
            others = {one.sequence_number for one in table.snapshots()}
            if number - 1 not in others and self.name(number - 1) not in known:
                raise self.gap(f"snapshots before number {number} have expired and were not read", number)
        return new

    def _added(self, table: Any, snapshot: Any) -> list[ManifestFile]:
        """Return data files that the snapshot brought; a compaction (`replace`) brings none."""
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
        """Return the path of a data file below the table's folder."""
        inside = path.removeprefix(table.metadata.location.rstrip("/") + "/")
        if not is_safe_path(inside):
            raise self.outside(path)
        return inside


def _client(options: StorageOptions | None) -> dict[str, str]:
    """Return the options as the library names them."""
    known = s3_settings(options)
    named = {
        "s3.endpoint": known.endpoint,
        "s3.access-key-id": known.key,
        "s3.secret-access-key": known.secret,
        "s3.session-token": known.token,
        "s3.region": known.region,
    }
    return {name: value for name, value in named.items() if value is not None}
