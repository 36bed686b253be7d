"""House-keeping by policy: what nothing will read again is deleted, small files are merged, old versions
dropped.

Protects: only rows and files that no reader can ever pick go, and a writer of the past can delete nothing of
its successor's (a transaction's name carries the epoch that made it).
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake.exceptions import CommitFailedError

from stream_odml.gallery import entries
from stream_odml.gallery.artifacts import BACKWARD, FORWARD
from stream_odml.gallery.crashpoints import crash_point
from stream_odml.gallery.fence import Fence
from stream_odml.gallery.files import ASIDE
from stream_odml.gallery.select import Ints, select_rows
from stream_odml.gallery.table import Table, commit_properties, writer_properties

SHARD_FILES = ("thumbnails", "holdout")
"""Folders of ``<shard_id>.parquet`` files that forgetting reaches."""
NAMES_AT_ONCE = 2000


@dataclass(frozen=True)
class MaintenancePolicy:
    """When and what to tidy."""

    compact_files: int = 32
    """Merge a table's small files once it has this many."""
    target_bytes: int = 128 << 20
    """Size of a merged file."""
    retention: timedelta = timedelta(hours=1)
    """How long files that were replaced stay, for readers in the middle of a read and for other tools."""
    orphan_age: timedelta = timedelta(hours=1)
    """Age at which a file that nothing names is taken for what a crash left."""
    keep_versions: int | None = None
    """Keep the models of the newest so many versions and of the head; older ones can then not be rolled back
    to."""

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


def maintain(fence: Fence, policy: MaintenancePolicy) -> MaintenanceReport:
    """All of it, in an order that any crash may cut short."""
    crash_point("maintain.before")
    purged = drop_orphans(fence) + _purge(fence)
    crash_point("maintain.after_purge")
    rewritten = _forget_in_files(fence)
    crash_point("maintain.after_files")
    retired = _retire(fence, policy)
    deleted = _drop_files(fence, policy)
    crash_point("maintain.after_artifacts")
    compacted = tuple(name for name in fence.store.tables if _compact(fence, name, policy))
    crash_point("maintain.after_compaction")
    vacuumed = sum(_vacuum(fence, table, policy) for table in fence.store.tables.values())
    crash_point("maintain.after_vacuum")
    fence.store.refresh()
    pa.default_memory_pool().release_unused()  # whole columns of the gallery went through it
    return MaintenanceReport(purged, rewritten, deleted, retired, compacted, vacuumed)


def drop_orphans(fence: Fence) -> int:
    """Delete rows of transactions that were never committed and, being of this epoch or an older one, never
    will be."""
    store, dropped = fence.store, 0
    visible = store.visible_txns()
    gallery, quarantine = store.tables["gallery"], store.tables["quarantine"]
    quarantine.refresh()
    columns = {
        "gallery": [gallery.read(path, ["txn"])["txn"] for path in sorted(gallery.present)],
        "quarantine": [quarantine.read(path, ["txn"])["txn"] for path in sorted(quarantine.present)],
    }
    for name, blocks in columns.items():
        txns = {txn for block in blocks for txn in block.unique().to_pylist()}
        orphans = sorted(txn for txn in txns - visible if _epoch_of(txn) <= fence.epoch)
        if orphans:
            dropped += _delete(fence, store.tables[name], f"txn IN ({_quoted(orphans)})")
    if dropped:
        store.refresh()
    return dropped


def _purge(fence: Fence) -> int:
    store = fence.store
    if not store.tree.moves or not store.blocks:
        return 0
    meta = store.metadata()
    selection = select_rows(meta, store.ledger, store.tree, store.tree.head)
    # The replaced rows go first: were the row that replaced them gone before them, they would come back.
    purged = sum(_purge_rows(fence, meta, part) for part in (selection.replaced, selection.forgotten))
    purged += _purge_quarantine(fence)
    if purged:
        store.refresh()
    return purged


def _purge_rows(fence: Fence, meta: pa.Table, rows: Ints) -> int:
    if len(rows) == 0:
        return 0
    dead = meta.take(pa.array(rows))
    by_shard: dict[str, dict[int, None]] = {}
    for shard_id, row in zip(dead["shard_id"].to_pylist(), dead["row"].to_pylist(), strict=True):
        by_shard.setdefault(shard_id, {})[row] = None
    purged = 0
    for shard_id, places in by_shard.items():
        for some in _batches(list(places)):
            where = f"shard_id = {_quoted([shard_id])} AND row IN ({', '.join(map(str, some))})"
            purged += _delete(fence, fence.store.tables["gallery"], where)
    return purged


def _purge_quarantine(fence: Fence) -> int:
    """First bytes of a forgotten shard's bad rows. (Of a forgotten class or item there are none: a bad row has
    neither.)"""
    table = fence.store.tables["quarantine"]
    table.refresh()
    there = {
        s for path in table.present for s in table.read(path, ["shard_id"])["shard_id"].unique().to_pylist()
    }
    gone = sorted(s.name for s in fence.store.ledger.tombstones if s.kind == "shard" and s.name in there)
    return _delete(fence, table, f"shard_id IN ({_quoted(gone)})") if gone else 0


def _forget_in_files(fence: Fence) -> int:
    """Rewrite thumbnails and held-out images without forgotten rows."""
    store, rewritten = fence.store, 0
    if not store.ledger.tombstones:
        return 0
    oldest = {
        s.shard_id for s in store.ledger.shards.values() if s.landed_seq < store.ledger.tombstones[-1].seq
    }
    for folder in SHARD_FILES:
        for shard_id in sorted(oldest):
            path = f"{folder}/{shard_id}.parquet"
            if store.files.exists(path):
                rewritten += _rewrite(fence, path, shard_id)
    return rewritten


def _rewrite(fence: Fence, path: str, shard_id: str) -> bool:
    files, ledger = fence.store.files, fence.store.ledger
    table = pq.read_table(pa.BufferReader(files.read(path)))
    names = set(table.schema.names)
    blank = [""] * len(table)
    classes = table["class_name"].to_pylist() if "class_name" in names else blank
    items = table["item_id"].to_pylist() if "item_id" in names else blank
    keep = [not ledger.forgotten(shard_id, c, i) for c, i in zip(classes, items, strict=True)]
    if all(keep):
        return False
    sink = pa.BufferOutputStream()
    pq.write_table(table.filter(pa.array(keep, pa.bool_())), sink)
    files.write(path, sink.getvalue().to_pybytes())
    return True


def _retire(fence: Fence, policy: MaintenancePolicy) -> int:
    tree = fence.store.tree
    if policy.keep_versions is None or not tree.moves:
        return 0
    kept = {*list(tree.versions)[-policy.keep_versions :], tree.head}
    old = [v for v in tree.versions.values() if v.version_id not in kept and not v.retired]
    fence.append("versions", fence.version_rows([entries.retired(v.version_id, "retention") for v in old]))
    fence.store.refresh()
    return len(old)


def _drop_files(fence: Fence, policy: MaintenancePolicy) -> int:
    """Artifacts that no version names (any more) and no attempt under way can name; half-written files."""
    store = fence.store
    named = {
        ref.path
        for version in store.tree.versions.values()
        for name, ref in version.artifacts.items()
        if not version.retired or name in (FORWARD, BACKWARD)
    }
    tries = (a for task in store.ledger.tasks.values() for a in task.attempts)
    under_way = {
        a.version_id for a in tries if a.refused is None and not store.tree.is_committed(a.version_id)
    }
    before, deleted = time.time() - policy.orphan_age.total_seconds(), 0
    for folder in ("artifacts", *SHARD_FILES):
        for info in store.files.list(folder):
            aside = ASIDE in info.path
            loose = (
                folder == "artifacts" and info.path not in named and info.path.split("/")[1] not in under_way
            )
            if (aside or loose) and info.mtime <= before:
                store.files.delete(info.path)
                deleted += 1
    return deleted


def _compact(fence: Fence, name: str, policy: MaintenancePolicy) -> bool:
    table = fence.store.tables[name]
    if len(table.present) < policy.compact_files:
        return False

    def merge() -> Any:
        return table.handle.optimize.compact(
            target_size=policy.target_bytes,
            writer_properties=writer_properties(name),
            commit_properties=commit_properties(fence.epoch),
        )

    merged = _committed(fence, merge)
    table.handle.create_checkpoint()
    fence.store.refresh()
    return bool(merged["numFilesRemoved"])


def _vacuum(fence: Fence, table: Table, policy: MaintenancePolicy) -> int:
    hours = int(policy.retention.total_seconds() // 3600)
    gone = table.handle.vacuum(
        retention_hours=hours,
        dry_run=False,
        enforce_retention_duration=False,
        full=True,
        commit_properties=commit_properties(fence.epoch),
    )
    return len(gone)


def _delete(fence: Fence, table: Table, where: str) -> int:
    def delete() -> Any:
        return table.handle.delete(
            where,
            writer_properties=writer_properties(table.name),
            commit_properties=commit_properties(fence.epoch),
        )

    return int(_committed(fence, delete)["num_deleted_rows"] or 0)


def _committed(fence: Fence, operation: Any) -> Any:
    try:
        return operation()
    except CommitFailedError:
        fence.store.refresh()
        fence.check()
        return operation()


def _epoch_of(txn: str) -> int:
    return int(txn.rpartition(".")[2])


def _quoted(names: Iterable[str]) -> str:
    return ", ".join("'" + name.replace("'", "''") + "'" for name in names)


def _batches(values: Sequence[int]) -> Iterable[Sequence[int]]:
    return (values[i : i + NAMES_AT_ONCE] for i in range(0, len(values), NAMES_AT_ONCE))
