"""A consistent copy of a stream root, taken while its stream runs; the same copy in the other direction restores it.

Protects: the copy is the root as it stood at one instant. Its tables are pinned at versions that were all current at
the same time, and what the pinned tables name is in the copy, or the copy is not made: until all is there its mark
says so, and nothing opens it. What was pushed, or copied from a topic, before the copy began is in it, whether or not
the ledger knows it yet: such files are copied before the tables are pinned, and again afterwards. One that is deleted
in between was learnt by then, and the pinned ledger says so.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from urllib.parse import unquote

import pyarrow as pa
from deltalake import DeltaTable

from stream_odml.storage.atomic import ASIDE
from stream_odml.storage.files import Files, open_files
from stream_odml.storage.outside import root_around
from stream_odml.storage.reading import table_options
from stream_odml.store.artifacts import read_artifact
from stream_odml.store.errors import ArtifactCorrupt
from stream_odml.store.layout import ARTIFACTS, LANDED, MARK, REWRITTEN, UPGRADE, strangers
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.origins import ORIGINS, UNFINISHED, Origins, below, origins_of
from stream_odml.store.store import Store
from stream_odml.store.tables import SCHEMAS
from stream_odml.wording import some

COPY_ATTEMPTS = 5
PIN_S = 60.0
_LOGGED = re.compile(r"/_delta_log/(\d{20})\.")


class BackupFailed(RuntimeError):
    """The root changed faster than it could be copied, or the target is not empty."""


@dataclass(frozen=True)
class Backup:
    """What was copied: the head, the Delta version of each table, and how much."""

    source: str
    head: str | None
    tables: Mapping[str, int]
    files: int
    bytes: int
    seconds: float
    left_out: Sequence[str] = ()
    """Names in the root that are none of a stream's."""


def back_up(
    source: str,
    target: str,
    source_options: dict[str, str] | None = None,
    target_options: dict[str, str] | None = None,
) -> Backup:
    """Copy the stream root `source` to `target`, an empty folder or prefix. Neither stops a running stream.

    Raises NotAStreamRoot for a source that is none, UnsafePath for one with links or names that lead out
    of it, UnfinishedBackup for a source or target where a copy broke off, BackupFailed.
    """
    began = time.monotonic()
    store = Store.open(source, source_options)
    to = open_files(target, target_options)
    Origins(to).check_finished()
    if any(to.exists(f"{name}/_delta_log/{0:020d}.json") for name in SCHEMAS) or to.exists(MARK):
        raise BackupFailed(
            f"{target} holds a stream root or a backup already; name an empty folder or prefix"
        )
    if left := [name for name in strangers(to) if name != "lost+found"]:
        raise BackupFailed(f"{target} is not empty: {some(left)} are in it; name an empty folder or prefix")
    if (around := root_around(to.uri, store.uri)) is not None:
        raise BackupFailed(
            f"{target} lies in the stream root {around}; name a folder or prefix outside of it"
        )
    for folder in (*SCHEMAS, ARTIFACTS, *REWRITTEN):
        store.files.only_regular(folder)
    copy = _Copy(store.files, to)
    copy.mark({"source": store.uri, UNFINISHED: True})  # first, so that nothing reads half a copy as a stream
    for attempt in range(1, COPY_ATTEMPTS + 1):
        try:
            copy.folders(*LANDED)
            pins = _pinned(store)
            for name, version in pins.items():
                copy.table(name, version, source_options)
            copy.folders(ARTIFACTS, *REWRITTEN, UPGRADE)
            copy.folders(*LANDED)
            copied = _checked(target, target_options)
            sizes = {info.path: info.size for folder in LANDED for info in copied.files.list(folder)}
            origins = origins_of(store.uri, store.origins.places, copied.ledger.shards.values(), sizes)
            if attempt < COPY_ATTEMPTS and (gone := _pruned(store, copied, origins)):
                raise FileNotFoundError(gone)
        except (FileNotFoundError, ArtifactCorrupt):
            # Vacuumed, forgotten, pruned or retired while it was copied. Tables and artifacts need not come again.
            for path in [info.path for folder in REWRITTEN for info in to.list(folder)]:
                to.delete(path)
            continue
        head = copied.tree.head if copied.tree.moves else None
        left_out = tuple(strangers(store.files))
        done = Backup(store.uri, head, pins, copy.files, copy.bytes, time.monotonic() - began, left_out)
        copy.mark({**asdict(done), ORIGINS: origins, "time": time.time()})
        return done
    raise BackupFailed(
        f"{source} was compacted {COPY_ATTEMPTS} times during the copy; raise store.retention_h above its time"
    )


def _pinned(store: Store) -> dict[str, int]:
    """Return versions of the tables that were all current at one instant: nothing moved while they were read."""
    deadline = time.monotonic() + PIN_S
    seen: dict[str, int] = {}
    while True:
        for table in store.tables.values():
            table.handle.update_incremental()
        now = {name: table.handle.version() for name, table in store.tables.items()}
        if now == seen:
            return now
        if time.monotonic() > deadline:
            raise BackupFailed(
                f"{store.uri} was committed to without a pause for {PIN_S:.0f} s; try again later"
            )
        seen = now


class _Copy:
    def __init__(self, source: Files, target: Files) -> None:
        self._source, self._target = source, target
        self.files = self.bytes = 0

    def table(self, name: str, version: int, options: dict[str, str] | None) -> None:
        """Copy the data of a table as of `version`, then its log up to there: a cut copy names nothing it lacks."""
        uri = f"{self._source.uri}/{name}"
        handle = DeltaTable(uri, version=version, storage_options=table_options(uri, options))
        for path in pa.table(handle.get_add_actions(flatten=True))["path"].to_pylist():
            self._file(f"{name}/{unquote(path)}")
        for info in self._source.list(f"{name}/_delta_log"):
            logged = _LOGGED.search(f"/{info.path}")
            if logged is not None and int(logged[1]) <= version and ASIDE not in info.path:
                # Not `_last_checkpoint`, which may name a later one: without it the folder is listed.
                self._file(info.path)

    def mark(self, says: Mapping[str, object]) -> None:
        """Write what the copy says of itself."""
        with self._writing():
            self._target.write(MARK, json.dumps(says, indent=1).encode())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Tell a target that cannot be written from a file that the source lacks, which is asked for again."""
        try:
            yield
        except OSError as error:
            message = f"{self._target.uri} cannot be written: {error}; name another folder"
            raise BackupFailed(message) from error

    def folders(self, *names: str) -> None:
        """Copy the files of folders, oldest first: a restored stream lands in the order of time of change."""
        found = [info for name in names for info in self._source.list(name) if ASIDE not in info.path]
        for info in sorted(found, key=lambda info: (info.mtime, info.path)):
            self._file(info.path)

    def _file(self, path: str) -> None:
        if self._target.exists(path):
            return
        with self._source.local(path) as file:
            with self._writing():
                self._target.upload(path, file)
            self.files += 1
            self.bytes += file.stat().st_size


def _checked(target: str, options: dict[str, str] | None) -> Store:
    """Open the copy as a reader would, and read every model that can be rolled back to."""
    store = Store(target, options)  # its mark says that it has not ended
    for version in store.tree.versions.values():
        for ref in version.artifacts.values():
            if not version.retired:
                read_artifact(store.files, ref)
    return store


def _pruned(source: Store, copied: Store, origins: Sequence[str]) -> str:
    """Return a file that the copied ledger has still to learn from, that the copy lacks, and that the source needs no
    more: it was learnt and deleted since the tables were pinned. Empty where there is none."""
    missing = {
        shard.shard_id: path
        for shard in _needed(copied)
        if (path := below(shard.uri, origins)) is not None
        and not copied.files.exists(f"{path}/_manifest.json" if shard.format == "folder" else path)
    }
    if not missing:
        return ""
    source.refresh()
    needed = {shard.shard_id for shard in _needed(source)}
    return next((path for name, path in missing.items() if name not in needed), "")


def _needed(store: Store) -> Iterator[ShardState]:
    """Return shards whose files have still to be read."""
    learnt = store.tree.learnt()
    shards = store.ledger.shards.values()
    return (s for s in shards if s.format != "task" and (s.task is None or s.task not in learnt))
