"""A table that is followed by version: what Delta, Iceberg and Lance tables have in common as sources.

Each version that added data is one shard, named after the table and the number of the version. Follow append-only
tables, or give them an `id` column: rows that an update writes again then replace the item of that id; without one
they would come as new items. A deletion in the table deletes nothing here (that is what `forget` is for).
"""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import PurePosixPath
from typing import ClassVar

import pyarrow.fs as pafs

from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ManifestFile, ShardManifest, ShardRef, make_shard_id
from stream_odml.ingest.sources import MAX_NEW
from stream_odml.storage.reading import StorageOptions, filesystem_of, is_remote, join, local_path

FORMAT = "files"
"""What a `ShardRef` whose manifest lists its files says of its format."""


class VersionsGone(ValueError):
    """Versions were cleaned out of the table before they were read: nothing says any more which rows were theirs."""


class VersionedTable(ABC):
    """The table at `uri` from version number `start_version` on; at most `max_new` shards come at once."""

    letter: ClassVar[str] = "v"
    """Version 7 of `…/photos` is the shard `photos-v00000007`."""

    def __init__(
        self, uri: str, options: StorageOptions | None = None, start_version: int = 0, max_new: int = MAX_NEW
    ) -> None:
        self.uri = uri.rstrip("/")
        self.options = options
        self.start_version = start_version
        self.max_new = max_new

    def poll(self, known: Collection[str]) -> list[ShardRef]:
        """See `Source`. Order: version. A version without new data gives a shard without rows. Raises
        TransientReadError, and VersionsGone with the remedy when versions are missing."""
        return list(islice(self.shards(known), self.max_new))

    @abstractmethod
    def shards(self, known: Collection[str]) -> Iterator[ShardRef]:
        """Yield the shards of versions that are not known. A version that is missing behind one that was yielded ends
        it: the next poll begins there."""

    @property
    def place(self) -> str:
        """Where the table lies, for whoever reads its shards."""
        return self.uri if is_remote(self.uri) else str(local_path(self.uri).absolute())

    def name(self, number: int) -> str:
        """Return the name of a version's shard."""
        return f"{PurePosixPath(self.uri).name}-{self.letter}{number:08d}"

    def listed(self, folder: str) -> list[str]:
        """Return names in a folder of the table; none where it is not there. Raises TransientReadError."""
        filesystem, path = filesystem_of(join(self.uri, folder), self.options)
        try:
            found = filesystem.get_file_info(pafs.FileSelector(path, allow_not_found=True))
        except OSError as error:
            raise TransientReadError(f"{self.uri} cannot be listed now: {error}") from error
        return [info.base_name for info in found]

    def shard_of_files(self, number: int, found: Iterable[ManifestFile], time_ns: int) -> ShardRef:
        """Return the shard of a version, with its files written down: it is read the same way after its version has
        expired from the table, for as long as the files are there."""
        files = tuple(sorted(found, key=lambda file: file.path))
        name, size = self.name(number), sum(file.size_bytes for file in files)
        shard_id = make_shard_id(name, hash_of_files(number, files))
        return ShardRef(shard_id, name, self.place, FORMAT, size, time_ns, name, ShardManifest(files=files))

    def outside(self, path: str) -> ValueError:
        """Return the error for a data file that is not below the table."""
        return ValueError(f"{self.uri} names the data file {path[:200]!r}, which lies outside of its folder")

    def gap(self, what: str, number: int) -> VersionsGone:
        """Return the error that says which versions are gone, and what to do; `number` is the first that is there."""
        return VersionsGone(
            f"{self.uri}: {what}; set source.start_version: {number} in the configuration, and land the older rows "
            "once with `stream-odml ingest FILE INBOX`"
        )


def hash_of_files(version: int, files: tuple[ManifestFile, ...]) -> str:
    """Return a content hash without reading the data: files of tables are named at random and never rewritten."""
    return hashlib.sha256(json.dumps([version, [(f.path, f.size_bytes) for f in files]]).encode()).hexdigest()
