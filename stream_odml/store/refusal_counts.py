"""How many refused rows are in the quarantine, by reason: what erasure took is not counted any more.

Protects: without an erasure the ledger has the figures, and no file is read; after one, each file is read once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.store.erased_refusals import COLUMNS, erased_refusals
from stream_odml.store.ledger import LedgerState
from stream_odml.store.table import Table

READ_ATTEMPTS = 3


class RefusalCounts:
    """Counts of each file of a quarantine, kept while neither it nor the tombstones change. Not for several threads."""

    def __init__(self) -> None:
        self._files: dict[str, Counter[str]] = {}
        self._erased_up_to = -1

    def count(self, opened: Callable[[], Table], ledger: LedgerState) -> dict[str, int]:
        """Return the rows that indexing refused and erasure left, by reason. The table is opened if it must be read."""
        if not ledger.tombstones:
            return dict(ledger.tally.reasons)
        return self._count(opened(), ledger, READ_ATTEMPTS)

    def _count(self, table: Table, ledger: LedgerState, attempts: int) -> dict[str, int]:
        table.refresh()
        newest = ledger.newest_tombstone
        known = self._files if newest == self._erased_up_to else {}
        self._files, self._erased_up_to = {}, newest
        total: Counter[str] = Counter()
        for path in table.present:
            try:
                counted, stays = (known[path], True) if path in known else _of_file(table, path, ledger)
            except FileNotFoundError:
                if attempts > 1:  # maintenance merged it in the meantime
                    return self._count(table, ledger, attempts - 1)
                continue  # it is lost, and `status` and `doctor` tell of it
            if stays:
                self._files[path] = counted
            total += counted
        return dict(total)


def _of_file(table: Table, path: str, ledger: LedgerState) -> tuple[Counter[str], bool]:
    """Return the counts of a file, and whether they stay: a row that no commit names yet may be named by the next."""
    rows = table.read(path, (*COLUMNS, "reason", "txn"))
    named = pc.is_in(rows["txn"].cast(pa.string()), value_set=pa.array(sorted(ledger.txns), pa.string()))
    mine = rows.filter(named)
    left = mine.filter(pa.array(~erased_refusals(mine, ledger.shards, ledger.latest_tombstones)))
    return Counter(left["reason"].to_pylist()), len(mine) == len(rows)
