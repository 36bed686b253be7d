"""The right to commit: one epoch, stated in both tables that hold commit points, checked at every commit.

Protects: a writer that slept while its successor claimed the root cannot commit. Its handle is stale, so its
append fails; or it has caught up, and then it has seen the newer epoch.
"""

import contextlib
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import pyarrow as pa
from deltalake.exceptions import CommitFailedError

from stream_odml.storage.crashpoints import crash_point
from stream_odml.store.errors import RootBusy, TableCorrupt, WriterFenced
from stream_odml.store.lease import Lease
from stream_odml.store.store import Store
from stream_odml.store.tables import SCHEMAS

APPEND_ATTEMPTS = 20
"""Maintenance beside it may commit to the same table again and again; a newer writer is found at the first look."""
PAUSE_S, MAX_PAUSE_S = 0.01, 0.5
CLOCKS_APART_S = 600.0
"""How far the clock of a disk or an object store may differ from this machine's."""
Entries = Literal["ledger", "versions"]
"""Tables that hold commit points."""
DEFAULTS: Mapping[Entries, Mapping[str, Any]] = {
    "ledger": {**dict.fromkeys(("subject", "task", "txn"), ""), "detail": "{}"},
    "versions": {
        **dict.fromkeys(("version_id", "parent", "task", "reason"), ""),
        **dict.fromkeys(("artifacts", "metrics"), "{}"),
    },
}


class Fence:
    """A store that this process may commit to as writer number `epoch`."""

    def __init__(self, store: Store, lease: Lease, holder: str) -> None:
        self.store = store
        self.lease = lease
        self.epoch = store.epoch + 1
        self._lock = threading.RLock()
        self.maintaining = threading.Lock()
        """Held by maintenance, of which one at a time is enough."""
        self.replaced: dict[str, float] = {}
        """Data files (`table/path`) that maintenance has replaced, since when (monotonic seconds); to be deleted."""
        crash_point("claim.before")
        try:
            rows = self.numbered("ledger", [{"kind": "epoch", "subject": holder}])
            store.tables["ledger"].append(rows, self.epoch)
        except CommitFailedError:
            # Two claims of one number must never both succeed, so this one is not tried again.
            raise RootBusy(
                f"{store.uri} was claimed by another writer at this very moment; try again"
            ) from None
        crash_point("claim.after_ledger")
        self.append_entries("versions", [{"kind": "epoch", "reason": holder}])
        crash_point("claim.after_versions")
        lease.write(self.epoch)

    @contextlib.contextmanager
    def exclusive(self) -> Iterator[Store]:
        """Yield the store brought up to date, for one operation at a time. Raises WriterFenced for a writer
        of the past."""
        with self._lock:
            self.store.refresh()
            self.check()
            yield self.store

    def check(self, store: Store | None = None) -> None:
        """Raise WriterFenced when the store, or another view of it, shows a newer writer."""
        newest = (store or self.store).epoch
        if newest > self.epoch:
            raise WriterFenced(
                f"writer {self.epoch} of {self.store.uri} was replaced by writer {newest}; "
                "this process must end, its successor goes on from what is committed"
            )

    def append_entries(self, table: Entries, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows of a table that holds commit points, numbered at every attempt, and take in what is committed."""
        if rows:
            self._append(table, lambda: self.numbered(table, rows))
        self.store.refresh()

    def append(self, table: str, rows: pa.Table) -> None:
        """Make one commit of a transaction's rows to one table; tried again only when what came first was no newer
        writer's claim."""
        if len(rows):
            self._append(table, lambda: rows, rows["txn"][0].as_py())

    def append_parts(self, table: str, parts: Callable[[], Iterator[pa.Table]], txn: str) -> None:
        """Append rows of a transaction that are too many for memory: one commit of all that `parts()` yields."""

        def reader() -> pa.RecordBatchReader:
            batches = (batch for part in parts() for batch in part.to_batches())
            return pa.RecordBatchReader.from_batches(self.store.tables[table].schema, batches)

        if any(len(part) for part in parts()):
            self._append(table, reader, txn)

    def _append(self, table: str, rows: Callable[[], pa.Table | pa.RecordBatchReader], txn: str = "") -> None:
        mark, before = uuid.uuid4().hex, time.time() - CLOCKS_APART_S
        for attempt in range(APPEND_ATTEMPTS):
            into = self.store.table(table)
            try:
                into.append(rows(), self.epoch, mark)
                return
            except CommitFailedError:
                self.store.refresh()
                self.check()
                # An object store may have made the commit and lost its answer on the way.
                if into.has(mark):
                    return
                if txn:
                    self._drop_uncommitted(table, txn, before)
                if attempt == APPEND_ATTEMPTS - 1:
                    raise
                time.sleep(random.uniform(0, min(MAX_PAUSE_S, PAUSE_S * 2**attempt)))

    def _drop_uncommitted(self, table: str, txn: str, before: float) -> None:
        """Delete what an append of this transaction left since `before`. Only its age would tell others that nobody
        is writing it, and what is erased meanwhile would outlive the request in it."""
        into = self.store.table(table)
        for info in self.store.files.list(table):
            path = info.path.removeprefix(f"{table}/")
            if info.mtime >= before and path.endswith(".parquet") and path not in into.present:
                # What maintenance is writing or deleting may not be a whole file.
                with contextlib.suppress(FileNotFoundError, TableCorrupt):
                    if into.read(path, ["txn"])["txn"].unique().to_pylist() == [txn]:
                        self.store.files.delete(info.path)

    def numbered(self, table: Entries, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """Return rows of a table that holds commit points with their sequence numbers, time and epoch."""
        common = {"time": datetime.now(UTC), "epoch": self.epoch}
        seq = self.store.ledger.seq if table == "ledger" else self.store.tree.seq
        numbered = [{**DEFAULTS[table], **row, **common, "seq": seq + 1 + i} for i, row in enumerate(rows)]
        return pa.Table.from_pylist(numbered, schema=SCHEMAS[table])
