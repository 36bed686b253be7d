"""Where shards are found. A source lists what is new and complete, in the order in which it is to land.

The contract of a source, and how to write another one: deploy/sources.md.
"""

from __future__ import annotations

import contextlib
import hashlib
import heapq
import logging
import os
import stat
import time
from collections.abc import Callable, Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from stream_odml.ingest.passed_over import is_foreign_shard
from stream_odml.ingest.reasons import BadShard, TransientReadError
from stream_odml.ingest.shard import (
    MANIFEST_NAME,
    ShardManifest,
    ShardRef,
    format_of,
    is_hidden,
    make_shard_id,
)
from stream_odml.storage.regular import UnsafePath, kind_of, open_regular

log = logging.getLogger(__name__)
MAX_NEW = 512
"""Shards that one poll returns at most, so that a backlog neither fills memory nor holds up the driver."""


WHOLE_TOPIC = -1
"""Stands for a partition where a topic as a whole is meant."""


@dataclass(frozen=True)
class LogFigures:
    """How far one partition of a log is read. `lag`: its messages that are not searchable yet."""

    topic: str
    partition: int
    searchable: int
    """The offset up to which everything is searchable, or quarantined."""
    lag: int
    lost: int = 0
    """Offsets that the topic had deleted before they were read, since this process began."""
    trouble: str = ""
    """Why its messages do not come, while those of others may; empty where all is well."""
    at_risk: int = 0
    """Messages that are not read and that the topic deletes soon."""
    warning: str = ""
    """What is to be done about those."""

    @property
    def place(self) -> str:
        """Return its name for people."""
        return f"{self.topic}/{self.partition}" if self.is_partition else self.topic

    @property
    def is_partition(self) -> bool:
        """Return whether it is of one partition, and not of a topic as a whole."""
        return self.partition != WHOLE_TOPIC


class Source(Protocol):
    """Something that shards come from; deploy/sources.md is its contract."""

    def poll(self, known: Collection[str]) -> list[ShardRef]:
        """Return new complete shards whose stamp is not in `known`, oldest first. Raises TransientReadError."""


@runtime_checkable
class LogSource(Source, Protocol):
    """A source that follows a log: it learns what became of its shards, and reports how far it is."""

    def settle(self, waiting: Collection[str], is_ledgered: Callable[[str], bool]) -> None:
        """Take note of the stamps of all shards that wait to be indexed, and of which ids the ledger has."""

    def figures(self) -> Sequence[LogFigures]:
        """Return how far each partition is; safe from any thread."""

    def close(self) -> None:
        """End all that it started."""


@runtime_checkable
class Inspectable(Source, Protocol):
    """A source that can be looked at where polling it would leave something behind."""

    def inspect(self) -> str:
        """Return what is there in one line; nothing is read from it for good, or written. Raises TransientReadError."""


NOT_READ = "put files themselves there, and land folders with `stream-odml ingest`"
MANIFEST_COMES_S = 60.0
"""Seconds that a producer may take between files of a folder, and for its manifest after them."""


class DirectorySource:
    """A local folder: each file in it is a shard, and each folder in it that has a `_manifest.json`.

    Names that begin with a dot or an underscore are skipped, and what systems leave anywhere (`passed_over.py`). So are
    links, and whatever else is no file or folder: nothing outside the inbox is read. `passed_over` tells of them.
    """

    def __init__(self, path: str | os.PathLike[str], max_new: int = MAX_NEW) -> None:
        self.path = Path(path)
        self.max_new = max_new
        self.passed_over: dict[str, str] = {}
        """Names in the inbox that are never opened, and what they are, as the last poll saw them."""

    def poll(self, known: Container[str]) -> list[ShardRef]:
        """See `Source`. Order: time of change; at the same time a manifest before the shards that it names, and
        after them when it closes all that waits; then name. A folder that is not there yet gives an empty list."""
        passed_over: dict[str, str] = {}
        try:
            new = heapq.nsmallest(self.max_new, self._unknown(known, passed_over))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise TransientReadError(f"{self.path} cannot be listed now: {error}") from error
        for name, kind in passed_over.items() - self.passed_over.items():
            log.warning("%s in the inbox is %s and is not read: %s", name, kind, NOT_READ)
        self.passed_over = passed_over
        found = (self._describe(mtime_ns, name, size, is_folder) for mtime_ns, name, size, is_folder in new)
        return sorted((ref for ref in found if ref is not None), key=landing_order)

    def _unknown(
        self, known: Container[str], passed_over: dict[str, str]
    ) -> Iterator[tuple[int, str, int, bool]]:
        with os.scandir(self.path) as entries:
            for entry in entries:
                if is_hidden(entry.name):
                    continue
                try:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    status = os.lstat(f"{entry.path}/{MANIFEST_NAME}" if is_folder else entry.path)
                except (FileNotFoundError, NotADirectoryError):
                    # Gone since it was listed, or a folder without its manifest, which may come as the last file.
                    if is_hand_made(entry):
                        passed_over[entry.name] = f"a folder without {MANIFEST_NAME}"
                    continue
                if not stat.S_ISREG(status.st_mode):
                    name = f"{entry.name}/{MANIFEST_NAME}" if is_folder else entry.name
                    passed_over[name] = kind_of(status.st_mode)
                    continue
                if _stamp(entry.name, status.st_size, status.st_mtime_ns) in known:
                    continue
                if not is_foreign_shard(entry.name, is_folder):  # asked of few, after what most are
                    yield status.st_mtime_ns, entry.name, status.st_size, is_folder

    def _describe(self, mtime_ns: int, name: str, size: int, is_folder: bool) -> ShardRef | None:
        path = self.path / name
        format = "folder" if is_folder else format_of(name)
        stamp, total, manifest = _stamp(name, size, mtime_ns), size, None
        try:
            with open_regular(path / MANIFEST_NAME if is_folder else path, follow=False) as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
                if format in ("folder", "task"):
                    file.seek(0)
                    manifest, total = read_note(file.read(), size)
                now = os.fstat(file.fileno())
        except (FileNotFoundError, UnsafePath):  # gone, or another thing since it was listed
            return None
        except OSError as error:
            log.warning("%s cannot be read now and will be tried again: %s", path, error)
            return None
        if (now.st_size, now.st_mtime_ns) != (size, mtime_ns):
            return None  # still being written: the next poll sees it as it will be then
        return ShardRef(
            make_shard_id(name, sha256), name, str(path.absolute()), format, total, mtime_ns, stamp, manifest
        )


def is_hand_made(folder: os.DirEntry[str]) -> bool:
    """Return whether a folder without a manifest has lain there too long for one that is just being written."""
    if is_foreign_shard(folder.name, True):
        return False
    with contextlib.suppress(FileNotFoundError):
        status = folder.stat(follow_symlinks=False)
        return stat.S_ISDIR(status.st_mode) and time.time() - status.st_mtime > MANIFEST_COMES_S
    return False


def landing_order(ref: ShardRef) -> tuple[int, int, str]:
    """Return a key that orders what landed at the same tick: clocks of file systems and object stores are coarse."""
    names_shards = ref.manifest is not None and bool(ref.manifest.shards)
    rank = 1 if ref.format != "task" else 0 if names_shards else 2
    return ref.mtime_ns, rank, ref.name


def _stamp(name: str, size: int, mtime_ns: int) -> str:
    return f"{name}|{size}|{mtime_ns}"


def read_note(data: bytes, size: int) -> tuple[ShardManifest | None, int]:
    """Return what a manifest says without its files, and the bytes that it stands for. A broken one says nothing."""
    try:
        full = ShardManifest.from_bytes(data)
    except BadShard:
        return None, size
    return replace(full, files=()), sum(file.size_bytes for file in full.files) or size
