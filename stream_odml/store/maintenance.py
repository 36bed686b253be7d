"""House-keeping by policy: what nothing will read again is deleted, small files are merged, old versions
dropped, and the tables' logs cut off behind a checkpoint.

Protects: only what no reader can ever pick goes, and commits never wait for any of it: the long part works through a
view of its own and takes the fence's lock only to add a row (see `housekeeping.py`).
"""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import pyarrow as pa

from stream_odml.storage.atomic import ASIDE
from stream_odml.storage.crashpoints import crash_point
from stream_odml.store.fence import Fence
from stream_odml.store.housekeeping import Housekeeper
from stream_odml.store.layout import REWRITTEN
from stream_odml.store.pictures import forget_in_files
from stream_odml.store.purge import drop_orphans, orphaned_txns, purge
from stream_odml.store.store import Store
from stream_odml.store.table import Table, writer_properties
from stream_odml.store.versions import version_entry

LEAST_LOG = timedelta(minutes=1)
"""Commits younger than this stay in a table's log by any policy: who follows it reads them one by one."""


@dataclass(frozen=True)
class MaintenancePolicy:
    """When and what to tidy."""

    compact_files: int = 32
    """Merge a table's small files once it has this many."""
    target_bytes: int = 128 << 20
    """Size of a merged file."""
    retention: timedelta = timedelta(hours=1)
    """How long files that were replaced stay, for readers in the middle of a read and for other tools."""
    log_retention: timedelta | None = None
    """How long the commits of a table's log stay behind its newest checkpoint; None leaves the tables' settings."""
    orphan_age: timedelta = timedelta(hours=1)
    """Age at which a file that nothing names is taken for what a crash left."""
    keep_versions: int | None = None
    """Keep the models of the newest so many versions and of the head; older ones can then not be rolled back to."""

    def __post_init__(self) -> None:
        if self.compact_files < 2 or self.target_bytes < 1 or (self.keep_versions or 1) < 1:
            raise ValueError("compact_files must be at least 2, target_bytes and keep_versions at least 1")
        if self.retention < timedelta(0) or self.orphan_age < timedelta(0):
            raise ValueError("retention and orphan_age cannot be negative")


@dataclass(frozen=True)
class MaintenanceReport:
    """What was done."""

    rows_purged: int
    shard_files_rewritten: int
    files_deleted: int
    versions_retired: int
    tables_compacted: tuple[str, ...]
    files_vacuumed: int


def maintain(fence: Fence, policy: MaintenancePolicy, covered: int | None = None) -> MaintenanceReport:
    """Do all maintenance, in an order that any crash may cut short. Hold `fence.maintaining`, and not the fence's lock.

    `covered`: the `seq` of the last tombstone whose rows may be deleted (banks need their vectors before);
    None for all.
    """
    crash_point("maintain.before")
    house = Housekeeper(
        fence, Store.open(fence.store.uri, fence.store.storage_options, keep_gallery=False), covered
    )
    before = _named(house)
    rewritten = forget_in_files(house)
    crash_point("maintain.after_files")
    purged = _drop_orphans(house) + purge(house)
    crash_point("maintain.after_purge")
    retired = _retire(fence, policy)
    deleted = _drop_files(house, policy)
    crash_point("maintain.after_artifacts")
    tables = house.store.tables
    for table in tables.values():
        _set_retention(house, table, policy)
    compacted = tuple(name for name in tables if _compact(house, name, policy))
    crash_point("maintain.after_compaction")
    house.check()
    fence.replaced |= dict.fromkeys(before - _named(house), time.monotonic())
    vacuumed = _delete_replaced(house, policy) + sum(
        _vacuum(house, table, policy) for table in tables.values()
    )
    crash_point("maintain.after_vacuum")
    pa.default_memory_pool().release_unused()  # whole columns of the gallery went through it
    return MaintenanceReport(purged, rewritten, deleted, retired, compacted, vacuumed)


def _drop_orphans(house: Housekeeper) -> int:
    found = orphaned_txns(house.store, house.fence.epoch)
    if not any(found.values()):
        return 0
    # A commit under way looks like one that a crash left. Nothing is under way under the lock, and such rows are rare.
    with house.fence.exclusive():
        return drop_orphans(house, found)


def _retire(fence: Fence, policy: MaintenancePolicy) -> int:
    with fence.exclusive() as store:
        tree = store.tree
        if policy.keep_versions is None or not tree.moves:
            return 0
        kept = {*list(tree.versions)[-policy.keep_versions :], tree.head}
        old = [v for v in tree.versions.values() if v.version_id not in kept and not v.retired]
        rows = [version_entry("retired", v.version_id, reason="retention") for v in old]
        fence.append_entries("versions", rows)
        return len(old)


def _drop_files(house: Housekeeper, policy: MaintenancePolicy) -> int:
    """Return artifacts that no version names (any more) and no attempt under way can name; half-written files."""
    store = house.store
    before = time.time() - policy.orphan_age.total_seconds()
    listed = [info for folder in ("artifacts", *REWRITTEN) for info in store.files.list(folder)]
    house.check()  # after the listing: an attempt that began since then has no file in it
    named, under_way, unfinished = store.tree.files, _under_way(store), _unfinished(store)
    old = [info.path for info in listed if info.mtime <= before]
    gone = [path for path in old if ASIDE in path]
    dropped: dict[str, list[str]] = {}
    for path in old:
        folder, _, rest = path.partition("/")
        version_id = rest.partition("/")[0]
        if folder != "artifacts" or ASIDE in path or path in named or version_id in under_way:
            continue
        if version_id in unfinished:
            dropped.setdefault(version_id, []).append(path)
        else:
            gone.append(path)
    for path in gone:
        store.files.delete(path)
    return len(gone) + sum(_drop_attempt(house, *attempt) for attempt in dropped.items())


def _drop_attempt(house: Housekeeper, version_id: str, paths: Sequence[str]) -> int:
    """Delete what an attempt left that is not to be gone on with. It is taken up again when the head comes back to its
    parent, or its task is asked for again; then it writes its files again, but a commit must not find half of them."""
    with house.fence.exclusive() as store:
        if version_id not in _unfinished(store) or version_id in _under_way(store):
            return 0
        for path in paths:
            store.files.delete(path)
    return len(paths)


def _unfinished(store: Store) -> set[str]:
    tries = (a for task in store.ledger.tasks.values() for a in task.attempts)
    return {a.version_id for a in tries if a.refused is None and a.version_id not in store.tree.versions}


def _under_way(store: Store) -> set[str]:
    """Return attempts that can be published under the head of now."""
    waiting = [task.task_id for task in store.ledger.tasks.values() if task.attempts and task.skipped is None]
    attempts = [store.current_attempt(task_id, store.tree.head) for task_id in waiting]
    attempts += [store.open_attempt(version_id) for version_id in store.ledger.later_attempts]
    return {attempt.version_id for attempt in attempts if attempt is not None}


def _set_retention(house: Housekeeper, table: Table, policy: MaintenancePolicy) -> None:
    """Let Delta itself cut the log at its checkpoints, and forget replaced files: by default it keeps 30 and 7 days."""
    if policy.log_retention is None:
        return
    kept = f"interval {max(policy.log_retention, LEAST_LOG).total_seconds():.0f} seconds"
    wanted = {"delta.logRetentionDuration": kept, "delta.deletedFileRetentionDuration": kept}
    if wanted.items() <= table.handle.metadata().configuration.items():
        return
    house.commit(
        lambda: table.handle.alter.set_table_properties(wanted, commit_properties=house.commit_properties)
    )


def _compact(house: Housekeeper, name: str, policy: MaintenancePolicy) -> bool:
    table = house.store.tables[name]
    merged = 0
    if len(table.present) >= policy.compact_files:
        compact: Callable[[], dict[str, int]] = lambda: table.handle.optimize.compact(  # noqa: E731
            target_size=policy.target_bytes,
            writer_properties=writer_properties(name),
            commit_properties=house.commit_properties,
        )
        merged = house.commit(compact)["numFilesRemoved"]
    house.check()
    table.checkpoint()
    return bool(merged)


def _named(house: Housekeeper) -> set[str]:
    return {f"{name}/{path}" for name, table in house.store.tables.items() for path in table.present}


def _delete_replaced(house: Housekeeper, policy: MaintenancePolicy) -> int:
    """Delete the files that were replaced `policy.retention` ago or earlier; return how many.

    Delta's own vacuum finds only those that are an hour old: a stream that commits often would keep an hour of every
    file that it ever merged. Files that this writer replaced are known to the second; what an earlier one replaced and
    did not live to delete is named by the tables' logs, which an erasure (no retention) asks.
    """
    replaced, now = house.fence.replaced, time.monotonic()
    due = [path for path, since in replaced.items() if now - since >= policy.retention.total_seconds()]
    unnamed = set(due) | (_removed(house) if not policy.retention else set())
    for path in unnamed - _named(house):
        house.store.files.delete(path)
    for path in due:
        del replaced[path]
    return len(unnamed)


def _removed(house: Housekeeper) -> set[str]:
    """Return data files that are there and that a table's log says were removed; no other is old enough to be judged,
    see `_vacuum`."""
    found: set[str] = set()
    for name, table in house.store.tables.items():
        named = table.handle.vacuum(
            retention_hours=0, dry_run=True, enforce_retention_duration=False, full=False
        )
        removed = {f"{name}/{path}" for path in named}
        if removed:  # the log names them long after they are deleted, and may name what lies outside
            found |= removed & {info.path for info in house.store.files.list(name)}
    return found


def _vacuum(house: Housekeeper, table: Table, policy: MaintenancePolicy) -> int:
    house.check()
    # The Delta library deletes through links, outside the root too.
    house.store.files.only_regular(table.name)
    # What is in no commit may be of one under way: only age tells it from what a crash left.
    hours = max(policy.retention, policy.orphan_age).total_seconds() / 3600
    return len(
        table.handle.vacuum(
            retention_hours=math.ceil(hours),
            dry_run=False,
            enforce_retention_duration=False,
            full=True,
            commit_properties=house.commit_properties,
        )
    )
