"""The one writer of a stream root: every change of state is an operation here, safe to repeat after any crash.

Protects: gallery rows come before the ledger row (of a shard) or the versions row (of a stage) that makes them
visible, so a crash leaves either nothing visible or all of it.
"""

import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import pyarrow as pa

from stream_odml.storage.crashpoints import crash_point
from stream_odml.store import events
from stream_odml.store.artifacts import ArtifactRef, refs_to_json, write_artifact
from stream_odml.store.checks import (
    accepted,
    asks_for_more,
    check_stage,
    closed_task,
    counted,
    fitting,
    known_shards,
)
from stream_odml.store.erased_meanwhile import indexed_without, refusals_without
from stream_odml.store.errors import UnknownSubject
from stream_odml.store.events import Landed
from stream_odml.store.fence import Fence
from stream_odml.store.housekeeping import Housekeeper
from stream_odml.store.lease import Lease
from stream_odml.store.ledger import LedgerState
from stream_odml.store.ledger_states import AttemptKind
from stream_odml.store.maintenance import MaintenancePolicy, MaintenanceReport, maintain
from stream_odml.store.purge import drop_orphans, orphaned_txns
from stream_odml.store.store import Store
from stream_odml.store.tables import IngestBatch as IngestBatch
from stream_odml.store.tables import stamped, with_column
from stream_odml.store.versions import FORGOT, VersionTree, stage_txn, version_entry

LEASE_S = 30.0


class Writer:
    """Commits for one stream root. Claim it, use it from any thread of one process, release it."""

    def __init__(self, fence: Fence) -> None:
        self._fence = fence
        self.store = fence.store
        """The writer's own view; up to date after every operation."""
        self.epoch = fence.epoch
        """This writer's number; a higher one in the store means that it is over."""

    @staticmethod
    def claim(
        root: str | Store,
        holder: str,
        takeover: bool = False,
        lease_s: float = LEASE_S,
        storage_options: dict[str, str] | None = None,
    ) -> "Writer":
        """Become the writer and tidy up after a predecessor that died. An open store is the writer's from now on.
        Raises RootBusy while another one lives (unless `takeover`), NotAStreamRoot, UnfinishedBackup, SchemaTooNew."""
        store = root if isinstance(root, Store) else Store.open(root, storage_options, keep_gallery=False)
        store.table("quarantine")  # a root of which it may not write a part is none of its own
        lease = Lease.acquire(store.files, holder, lease_s, takeover)
        try:
            store.refresh()
            writer = Writer(Fence(store, lease, holder))
            writer._recover()
        except BaseException:  # of an interrupt too: else nobody may write until it runs out
            lease.release()
            raise
        return writer

    @property
    def ledger(self) -> LedgerState:
        return self.store.ledger

    @property
    def tree(self) -> VersionTree:
        return self.store.tree

    @property
    def is_lost(self) -> bool:
        """Whether another run has taken the lease; the next commit would fail."""
        return self._fence.lease.lost

    def exclusive(self) -> AbstractContextManager[Store]:
        """Return the store brought up to date, for who reads rows of it: no other thread refreshes it meanwhile."""
        return self._fence.exclusive()

    def release(self) -> None:
        """Give the root back, so that the next claim need not wait."""
        self._fence.lease.release()

    def record_landed(self, refs: Sequence[Landed]) -> list[str]:
        """Take complete shards into the ledger; the ids that were new. A known id is passed over."""
        with self._fence.exclusive() as store:
            new = {ref.shard_id: ref for ref in refs if ref.shard_id not in store.ledger.shards}
            self._ledger("landed", [events.landed(ref) for ref in new.values()])
            return list(new)

    def commit_ingest(self, batch: IngestBatch) -> str:
        """Make shards searchable in one transaction; its name. Repeated for indexed shards it changes nothing."""
        with self._fence.exclusive() as store:
            shards = known_shards(store.ledger, batch.shard_ids)
            pending = [shard.shard_id for shard in shards if shard.txn is None]
            if not pending:
                return shards[0].txn or ""
            return self._index("ingest", indexed_without(store, batch, pending))

    def adopt(self, shard: Landed, batch: IngestBatch) -> bool:
        """Commit a shard of rows that came out of another store: it lands and is indexed at once, whole or not at all.
        False for one that is there already. Raises ValueError as `commit_ingest` does."""
        with self._fence.exclusive() as store:
            if shard.shard_id in store.ledger.shards:
                return False
            self._index("adopt", replace(batch, rows=fitting(store, batch.rows)), [events.landed(shard)])
            return True

    def _index(self, point: str, batch: IngestBatch, came: Sequence[events.Entry] = ()) -> str:
        """Commit the rows of shards, then the entries of the ledger that make them visible; the transaction's name."""
        txn = f"i{uuid.uuid4().hex[:16]}.{self.epoch}"
        counts = counted(batch.shard_ids, batch.rows, batch.quarantine, batch.counts)
        crash_point(f"{point}.before")
        self._fence.append("gallery", with_column(batch.rows, "txn", txn))
        crash_point(f"{point}.after_gallery")
        self._fence.append("quarantine", stamped(batch.quarantine, txn))
        crash_point(f"{point}.after_quarantine")
        indexed = [events.indexed(shard_id, txn, counts[shard_id]) for shard_id in batch.shard_ids]
        self._fence.append_entries("ledger", [*came, *indexed])
        crash_point(f"{point}.after_ledger")
        return txn

    def set_aside(self, shard_id: str, reason: str, final: bool = True) -> None:
        """Count a failed attempt at a shard; a final one takes it out of the stream. Its good rows stay searchable."""
        with self._fence.exclusive() as store:
            shard = known_shards(store.ledger, [shard_id])[0]
            if shard.state != "set_aside":
                self._ledger("set_aside", [events.set_aside(shard_id, reason, final)])

    def close_task(
        self, task_id: str, shard_ids: Sequence[str], reason: str, detail: Mapping[str, Any] | None = None
    ) -> None:
        """Close a task over these waiting shards, in one commit, before anything of it is learnt."""
        with self._fence.exclusive() as store:
            known = store.ledger.tasks.get(task_id)
            if known is not None and set(known.shard_ids) == set(shard_ids):
                return
            if known is not None:
                raise ValueError(
                    f"task {task_id!r} is closed over {list(known.shard_ids)}; a closed task never changes"
                )
            taken = [s.shard_id for s in known_shards(store.ledger, shard_ids) if s.state != "indexed"]
            if taken or not shard_ids:
                raise ValueError(f"task {task_id!r} needs indexed shards that no task has, not {taken}")
            self._ledger("close", [events.assigned(s, task_id, reason, detail or {}) for s in shard_ids])

    def begin_attempt(self, task_id: str, parent: str | None = None) -> str:
        """Return the id to learn `task_id` under from `parent` (the head): kept over restarts, new once refused."""
        with self._fence.exclusive() as store:
            parent = parent or store.tree.head
            current = store.current_attempt(task_id, parent)
            return current.version_id if current else self._begin(events.attempt, task_id, parent)

    def begin_later_attempt(
        self,
        kind: AttemptKind,
        tasks: Sequence[str],
        shards: Sequence[str] = (),
        *,
        worst: bool = False,
        renewed: bool = False,
    ) -> str:
        """Begin, from the head, to improve what is learnt; return the id, which names the last of `tasks`."""
        with self._fence.exclusive() as store:
            new = partial(events.attempt, kind=kind, tasks=tasks, shards=shards, worst=worst, renewed=renewed)
            return self._begin(new, tasks[-1], store.tree.head)

    def _begin(self, attempt: Callable[[str, str, str], events.Entry], task_id: str, parent: str) -> str:
        version_id = f"v{self.tree.get(parent).depth + 1:04d}-{uuid.uuid4().hex[:8]}"
        self._ledger("attempt", [attempt(version_id, task_id, parent)])
        return version_id

    def put_artifact(self, version_id: str, name: str, data: bytes) -> ArtifactRef:
        """Write an artifact for a later `commit_stage` (any process may, by `artifacts.write_artifact`)."""
        return write_artifact(self.store.files, version_id, name, data)

    def commit_root(self, artifacts: Mapping[str, bytes], metrics: Mapping[str, Any] | None = None) -> str:
        """Commit the initial model as the root and the head; its version id. Repeated: that of the one there."""
        with self._fence.exclusive() as store:
            if store.tree.root is not None:
                return store.tree.root
            version_id = f"v0000-{uuid.uuid4().hex[:8]}"
            refs = {name: self.put_artifact(version_id, name, data) for name, data in artifacts.items()}
            crash_point("root.before_versions")
            self._publish(version_id, "", "", refs, metrics or {})
            crash_point("root.after_versions")
            return version_id

    def commit_stage(
        self,
        version_id: str,
        parent: str,
        task: str,
        artifacts: Mapping[str, ArtifactRef],
        rows: pa.Table | Iterable[pa.Table] = (),
        metrics: Mapping[str, Any] | None = None,
        quarantine: pa.Table | None = None,
    ) -> None:
        """Commit a learnt version with its task's images embedded anew, and move the head to it.
        `rows`: all, or parts to be gone through several times; none, and no drift maps, where the student is the
        parent's. `quarantine`: rows of the task that could not be learnt from.

        A version that is committed already is left as it is. Raises StaleParent when the head left
        `parent`, ValueError for a refused attempt, missing artifacts, or rows of another version.
        """
        with self._fence.exclusive() as store:
            if version_id not in store.tree.versions:
                check_stage(store, version_id, parent, task, artifacts, metrics or {})
                parts = [rows] if isinstance(rows, pa.Table) else rows
                for part in parts:
                    # What is wrong with any of them is to be known before the first is written.
                    accepted(store, part, version_id)
                txn = stage_txn(version_id, self.epoch)
                crash_point("stage.before")
                self._fence.append_parts(
                    "gallery",
                    lambda: (with_column(accepted(store, p, version_id), "txn", txn) for p in parts),
                    txn,
                )
                crash_point("stage.after_gallery")
                if quarantine is not None:
                    lost = refusals_without(store, quarantine)
                    self._fence.append("quarantine", stamped(lost, txn))
                self._publish(version_id, parent, task, artifacts, metrics or {})
                crash_point("stage.after_versions")
            if version_id not in store.ledger.learnt_rows:
                self._fence.append_entries("ledger", [events.learnt(version_id, task)])
            crash_point("stage.after_ledger")

    def refuse(
        self, version_id: str, task: str, reason: str, metrics: Mapping[str, Any] | None = None
    ) -> None:
        """Record that an attempt's result is not wanted; the task's next attempt gets a new version id."""
        with self._fence.exclusive() as store:
            if version_id in store.tree.versions:
                raise ValueError(f"version {version_id} is committed; move the head instead of refusing it")
            known = store.ledger.tasks.get(task)
            tries = {a.version_id: a for a in known.attempts} if known else {}
            if version_id not in tries:
                raise UnknownSubject(
                    f"{version_id!r} is no attempt at task {task!r}; begin_attempt names them"
                )
            crash_point("refuse.before")
            if tries[version_id].refused is None:
                self._fence.append_entries(
                    "ledger", [events.refused(version_id, task, reason, bool(metrics))]
                )
            crash_point("refuse.after_ledger")
            self._record_refusal(version_id, task, tries[version_id].parent, reason, metrics or {})
            crash_point("refuse.after_versions")

    def skip_task(self, task_id: str, reason: str) -> None:
        """Do not learn this task, though it is due."""
        with self._fence.exclusive() as store:
            if closed_task(store.ledger, task_id).skipped is None:
                self._ledger("skip", [events.skipped(task_id, reason)])

    def relearn_task(self, task_id: str, anyway: bool = False) -> None:
        """Let a task be learnt after all, behind those that wait; `anyway`: published whatever the gate finds. Asked
        again while it waits, it changes nothing. Raises UnknownSubject, ValueError for one that is learnt."""
        with self._fence.exclusive() as store:
            if asks_for_more(store.ledger, store.tree, task_id, anyway):
                self._ledger("relearn", [events.relearn(task_id, anyway)])

    def move_head(self, version_id: str, reason: str, skip_abandoned: bool = False) -> None:
        """Serve another committed version from now on: rollback, or roll-forward. Tasks learnt only on the branch that
        is left are due again, unless `skip_abandoned` says that they are not."""
        with self._fence.exclusive() as store:
            if store.tree.get(version_id).retired:
                raise ValueError(
                    f"version {version_id} is retired: its model was dropped by retention; choose a later one"
                )
            crash_point("head.before")
            if store.tree.head == version_id:
                return
            left = store.tree.learnt() - store.tree.learnt(version_id) if skip_abandoned else frozenset()
            self._fence.append_entries("ledger", [events.skipped(task, reason) for task in sorted(left)])
            crash_point("head.after_skipped")
            self._fence.append_entries("versions", [version_entry("head", version_id, reason=reason)])
            crash_point("head.after_versions")

    def replace_artifact(self, version_id: str, name: str, data: bytes, reason: str) -> ArtifactRef:
        """Let a committed version name another file, as erasure needs for banks; maintenance deletes the old."""
        with self._fence.exclusive() as store:
            version = store.tree.get(version_id)
            ref = self.put_artifact(version_id, name, data)
            if version.artifacts.get(name) != ref:
                self._name_artifacts({version_id: {name: ref}}, reason)
            return ref

    def _name_artifacts(self, refs: Mapping[str, Mapping[str, ArtifactRef]], reason: str) -> None:
        named = ((version_id, refs_to_json(of)) for version_id, of in refs.items())
        rows = [version_entry("artifact", v, artifacts=text, reason=reason) for v, text in named]
        self._fence.append_entries("versions", rows)

    def replace_forgotten(self, data: Mapping[str, Mapping[str, bytes | ArtifactRef]], seq: int) -> None:
        """Let versions name artifacts (by version and name) without what tombstones up to `seq` cover: all in one
        commit, so that no image is taken out twice. The old files are deleted, and heads that nothing is left to solve
        again. A ref: that artifact has nothing of it."""
        with self._fence.exclusive() as store:
            old, refs = set(store.tree.heads_without_models), dict[str, dict[str, ArtifactRef]]()
            for v, parts in data.items():
                before = store.tree.get(v).artifacts
                old |= {before[n] for n in parts if n in before}
                put = partial(self.put_artifact, v)
                refs[v] = {n: p if isinstance(p, ArtifactRef) else put(n, p) for n, p in parts.items()}
            crash_point("replace.before_versions")
            self._name_artifacts(refs, f"{FORGOT}:{seq}")
            crash_point("replace.after_versions")
            # One file may be named by several versions: one that only another one gave up stays.
            for path in {ref.path for ref in old} - store.tree.files:
                store.files.delete(path)

    def forget(self, kind: Literal["class", "item", "shard"], name: str, items: int | None = None) -> int:
        """Forget a class, an item or a shard: gone for every reader at once, deleted by `maintain`.

        `items`: how many it covers, to be recorded. Whether the name stands for anything is the caller's question.
        Returns the tombstone's seq. What lands after it is a return of the name, and visible.
        """
        with self._fence.exclusive() as store:
            last = max(
                (t.seq for t in store.ledger.tombstones if (t.kind, t.name) == (kind, name)), default=-1
            )
            if last < 0 or any(shard.landed_seq > last for shard in store.ledger.shards.values()):
                self._ledger("forget", [events.forget(kind, name, items)])
                last = store.ledger.tombstones[-1].seq
            return last

    def maintain(
        self, policy: MaintenancePolicy | None = None, covered: int | None = None
    ) -> MaintenanceReport:
        """Delete what nothing will read again, merge small files, drop old table versions; see the policy. Other
        operations need not wait for it. `covered` as for `maintain`."""
        with self._fence.maintaining:
            report = maintain(self._fence, policy or MaintenancePolicy(), covered)
        with self._fence.exclusive():  # this writer's own view is up to date after every operation
            return report

    def _recover(self) -> None:
        with self._fence.exclusive() as store:
            drop_orphans(Housekeeper(self._fence, store), orphaned_txns(store, self.epoch))
            crash_point("claim.after_orphans")
            versions = store.tree.versions.values()
            missing = [v for v in versions if v.task and v.version_id not in store.ledger.learnt_rows]
            self._fence.append_entries("ledger", [events.learnt(v.version_id, v.task or "") for v in missing])
            for task in store.ledger.tasks.values():
                for a in task.attempts:
                    if a.refused is not None:
                        self._record_refusal(a.version_id, task.task_id, a.parent, a.refused, {})

    def _record_refusal(
        self, version_id: str, task: str, parent: str, reason: str, metrics: Mapping[str, Any]
    ) -> None:
        if all(refusal.version_id != version_id for refusal in self.tree.refusals):
            more = {"parent": parent, "task": task, "reason": reason, "metrics": events.as_json(metrics)}
            self._fence.append_entries("versions", [version_entry("refusal", version_id, **more)])

    def _publish(
        self,
        version_id: str,
        parent: str,
        task: str,
        artifacts: Mapping[str, ArtifactRef],
        metrics: Mapping[str, Any],
    ) -> None:
        more = {"artifacts": refs_to_json(artifacts), "metrics": events.as_json(metrics)}
        version = version_entry("version", version_id, parent=parent, task=task, **more)
        head = version_entry("head", version_id, reason="publish")
        self._fence.append_entries("versions", [version, head])

    def _ledger(self, point: str, rows: Sequence[Mapping[str, Any]]) -> None:
        crash_point(f"{point}.before")
        self._fence.append_entries("ledger", rows)
        crash_point(f"{point}.after")
