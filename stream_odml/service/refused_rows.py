"""The newest rows of the quarantine, for people: read when they are asked for, newest file first, and no more of them.

Protects: what is not committed, or names what was erased, is not shown. Whoever asks how many there are has an answer
while the store hangs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime
from functools import cache
from typing import Any

from deltalake.exceptions import DeltaError

from stream_odml.ingest.reasons import REMEDIES
from stream_odml.service.backend import RefusedRow
from stream_odml.store.erased_refusals import erased_refusals
from stream_odml.store.ledger import LedgerState
from stream_odml.store.refusal_counts import RefusalCounts
from stream_odml.store.select import visible_txns
from stream_odml.store.table import Table
from stream_odml.store.versions import VersionTree

log = logging.getLogger(__name__)

COLUMNS = ("shard_id", "row", "reason", "detail", "time", "txn")
READ_ATTEMPTS = 3
COUNT_WAIT_S = 1.0
"""Seconds that whoever asks for counts waits for the store; then those of before are told."""


class RefusedRows:
    """Reads the quarantine of a root by a handle of its own, which `open_table` gives. `newest` is for any thread."""

    def __init__(self, open_table: Callable[[], Table]) -> None:
        self._table = cache(open_table)
        self._counts = RefusalCounts()
        self._lock = threading.Lock()
        self._counting: asyncio.Task[dict[str, int]] | None = None
        self._counted: dict[str, int] | None = None
        self._fails = False

    def newest(self, ledger: LedgerState, tree: VersionTree, limit: int) -> Sequence[RefusedRow]:
        """Return at most `limit` rows, the newest first."""
        with self._lock:
            for _ in range(READ_ATTEMPTS - 1):
                with contextlib.suppress(FileNotFoundError):  # maintenance merged it in the meantime
                    return self._newest(ledger, tree, limit)
            return self._newest(ledger, tree, limit)

    async def counts(self, ledger: LedgerState) -> dict[str, int]:
        """Return how many rows are there, by reason. While the store hangs or fails: what was counted last, or, where
        nothing was, all that were ever refused. Called from one event loop."""
        if not ledger.tombstones:
            return dict(ledger.tally.reasons)
        self._take_count()
        # One at a time: a store that hangs is not given a thread by everyone who asks.
        if self._counting is None:
            self._counting = asyncio.create_task(asyncio.to_thread(self._count, ledger))
        await asyncio.wait({self._counting}, timeout=COUNT_WAIT_S)
        self._take_count()
        return dict(ledger.tally.reasons if self._counted is None else self._counted)

    def _take_count(self) -> None:
        """Take in a count that has ended, so that the next is of what is there then."""
        if self._counting is None or not self._counting.done():
            return
        done, self._counting = self._counting, None
        try:
            self._counted, self._fails = done.result(), False
        except (OSError, DeltaError) as error:
            if not self._fails:
                log.warning("the quarantine cannot be counted now: %s", error)
            self._fails = True

    def _count(self, ledger: LedgerState) -> dict[str, int]:
        with self._lock:
            return self._counts.count(self._table, ledger)

    def _newest(self, ledger: LedgerState, tree: VersionTree, limit: int) -> Sequence[RefusedRow]:
        table, visible = self._table(), visible_txns(ledger, tree)
        table.refresh()
        found: list[dict[str, Any]] = []
        for path in reversed(table.paths):
            if len(found) >= limit:
                break
            rows = table.read(path, COLUMNS)
            erased = erased_refusals(rows, ledger.shards, ledger.latest_tombstones)
            both = zip(rows.to_pylist(), erased, strict=True)
            found += [row for row, is_erased in both if row["txn"] in visible and not is_erased]
        found.sort(key=lambda row: (-row["time"].timestamp(), row["shard_id"], row["row"]))
        return [_refused(**{name: row[name] for name in COLUMNS[:-1]}) for row in found[:limit]]


def _refused(shard_id: str, row: int, reason: Any, detail: str, time: datetime | None) -> RefusedRow:
    return RefusedRow(shard_id, row, reason, detail, REMEDIES.get(reason, "refused by another release"), time)
