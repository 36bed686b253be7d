"""Follow a Lance dataset: each version that added data is one shard.

What a version brought is what its transaction says: compaction, indexes and new columns bring nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import lance

from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ManifestFile, ShardRef
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.ingest.versioned_table import VersionedTable
from stream_odml.storage.reading import join, table_options


class LanceTableSource(VersionedTable):
    """See `VersionedTable`."""

    def shards(self, known: Collection[str]) -> Iterator[ShardRef]:
        table = self._opened(None)
        last = -1 if table is None else table.version
        new = (n for n in range(max(1, self.start_version), last + 1) if self.name(n) not in known)
        for at, number in enumerate(new):
            version = self._opened(number)
            if version is not None:
                yield self._describe(version, number)
            elif at:
                return
            else:
                there = min(one["version"] for one in table.versions() if one["version"] > number)
                raise self.gap(f"version {number} was cleaned up, the next one there is {there}", there)

    def _opened(self, version: int | None) -> Any:
        """Return the dataset at a version, the latest by default; None where it is not there."""
        try:
            options = table_options(self.uri, self.options)
            return lance.dataset(self.uri, version=version, storage_options=options)
        except (OSError, ValueError) as error:
            if "not found" in str(error):
                return None
            raise TransientReadError(f"{self.uri} cannot be read now: {str(error)[:300]}") from error

    def _describe(self, table: Any, number: int) -> ShardRef:
        try:
            transaction = table.read_transaction(number)
        except (OSError, ValueError) as error:
            raise TransientReadError(f"{self.uri} cannot be read now: {str(error)[:300]}") from error
        files = (self._file(one) for fragment in _added(transaction) for one in fragment.files)
        return self.shard_of_files(number, files, int(table.get_version()["timestamp"].timestamp() * 1e9))

    def _file(self, file: Any) -> ManifestFile:
        if file.base_id is not None:
            raise self.outside(file.path)
        path = f"data/{file.path}"
        if file.file_size_bytes:
            return ManifestFile(path, file.file_size_bytes)
        with ShardFile(join(self.uri, path), self.options) as opened:
            return ManifestFile(path, opened.size_bytes)


def _added(transaction: Any) -> list[Any]:
    """Return fragments that a transaction brought. One that says nothing is of a writer before Lance 0.10."""
    operation = None if transaction is None else transaction.operation
    if isinstance(operation, lance.LanceOperation.Append | lance.LanceOperation.Overwrite):
        return list(operation.fragments)
    return list(operation.new_fragments) if isinstance(operation, lance.LanceOperation.Update) else []
