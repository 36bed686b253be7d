"""A writer's second view of its root, for long work beside its commits: what maintenance reads and commits through.

Protects: nothing long holds the lock that commits wait for, and the fence holds all the same. Each commit from here
is checked by Delta against every commit that came first (a merge or a deletion conflicts with whatever touched its
files), each step begins by looking for a newer writer, and no such commit makes a row visible.
"""

import contextlib
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TypeVar

from deltalake import CommitProperties
from deltalake.exceptions import CommitFailedError

from stream_odml.store.fence import Fence
from stream_odml.store.ledger import LedgerState
from stream_odml.store.store import Store
from stream_odml.store.table import Table, commit_properties, writer_properties

ATTEMPTS = 5
REBASES = 15
"""Times that Delta itself looks at what came first and commits behind it."""
T = TypeVar("T")


class Housekeeper:
    """`store`: the writer's under the lock, else one of its own; `covered`: the last tombstone whose rows may go."""

    def __init__(self, fence: Fence, store: Store, covered: int | None = None) -> None:
        self.fence, self.store = fence, store
        self.check()
        # What is requested meanwhile is for the next round: its rows must not go before its pictures.
        self._covered = self.store.ledger.newest_tombstone if covered is None else covered

    def check(self) -> None:
        """Take in what was committed; WriterFenced when that shows a newer writer."""
        self.store.refresh()
        self.store.tables["quarantine"].refresh()  # the store itself reads it when it is asked for
        self.fence.check(self.store)

    @property
    def ledger(self) -> LedgerState:
        """The ledger without the tombstones whose vectors somebody needs still."""
        whole = self.store.ledger
        tombstones = tuple(tombstone for tombstone in whole.tombstones if tombstone.seq <= self._covered)
        return whole if len(tombstones) == len(whole.tombstones) else replace(whole, tombstones=tombstones)

    @cached_property
    def commit_properties(self) -> CommitProperties:
        """For commits that Delta may make behind others which they do not conflict with."""
        return commit_properties(self.fence.epoch, retries=REBASES)

    def commit(self, operation: Callable[[], T]) -> T:
        """Return what `operation` on a table's handle gives; done again on the newest table when
        another commit conflicts."""
        for _ in range(ATTEMPTS - 1):
            self.check()
            with contextlib.suppress(CommitFailedError):
                return operation()
        self.check()
        return operation()

    def delete(self, table: Table, where: str) -> int:
        """Delete rows by an SQL predicate; how many went."""
        layout, marks = writer_properties(table.name), self.commit_properties
        gone = self.commit(lambda: table.handle.delete(where, layout, commit_properties=marks))
        return int(gone["num_deleted_rows"] or 0)
