"""A source of your own: Parquet files of a batch job, of folders that it has marked as complete.

Spark and its kin write `day=2026-11-26/part-0000.parquet`, and `_SUCCESS` when the folder is whole. In the
configuration of a stream, with this file importable where the driver runs (installed, or on PYTHONPATH):

    source:
      kind: "own_source:completed_folders"
      path: /data/images

`deploy/sources.md` has the contract, point by point. Try it: python examples/own_source.py /data/images
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Container, Iterator, Mapping
from pathlib import Path

from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ShardRef, make_shard_id

MARK = "_SUCCESS"
AT_MOST = 512
"""Shards of one poll; the rest comes next time."""


class CompletedFolders:
    """Finds the Parquet files of every folder with a mark. Keeps no state: `known` is all that it remembers."""

    def __init__(self, path: str) -> None:
        self.path = Path(path)

    def poll(self, known: Container[str]) -> list[ShardRef]:
        """Return new shards, oldest folder first. Raises TransientReadError while the place cannot be listed."""
        try:
            return [ref for ref, _ in zip(self._new(known), range(AT_MOST), strict=False)]
        except OSError as error:
            raise TransientReadError(f"{self.path} cannot be listed now: {error}") from error

    def _new(self, known: Container[str]) -> Iterator[ShardRef]:
        for mark in sorted(self.path.glob(f"*/{MARK}")):
            for file in sorted(mark.parent.glob("*.parquet")):
                found = file.stat()
                name = f"{mark.parent.name}-{file.name}"
                # What the listing gives for free, and changes when the file does: no known file is opened.
                stamp = f"{name} {found.st_size} {found.st_mtime_ns}"
                if stamp not in known:
                    shard = make_shard_id(name, sha256_of(file))
                    yield ShardRef(
                        shard, name, str(file), "parquet", found.st_size, found.st_mtime_ns, stamp=stamp
                    )


def sha256_of(file: Path) -> str:
    """Return the hash that a shard's id states; whoever reads the shard checks it."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def completed_folders(path: str, options: Mapping[str, str]) -> CompletedFolders:
    """Return the source, as `source.kind` names it; `options` are `source.storage_options`."""
    return CompletedFolders(path)


if __name__ == "__main__":
    for one in completed_folders(sys.argv[1], {}).poll(()):
        print(one.shard_id, one.uri)
