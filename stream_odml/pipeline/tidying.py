"""When the driver tidies its store, and in which thread: never in one that status, rollback or a commit waits for.

Protects: vectors that banks and class sums need are deleted only after these were corrected, in one step under
the driver's lock.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Any

from stream_odml.config.stream import StreamConfig
from stream_odml.pipeline.pushed import prune_copied, prune_pushed
from stream_odml.pipeline.sources import push_path
from stream_odml.storage.files import Files, open_files
from stream_odml.storage.refusals import trouble_words
from stream_odml.store.erasure import forget_in_banks
from stream_odml.store.errors import WriterFenced
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.sums import forget_in_sums
from stream_odml.store.writer import Writer

log = logging.getLogger(__name__)
LOOK_S = 0.2
RETRY_S = 5.0
ERASE_AFTER_S = 5.0
"""From a request to erase to the deletion of what it names: several requests are served by one."""
ERASE_AGAIN_S = 3600.0
"""A driver that starts so soon after a request deletes once more: its predecessor may have died on the way."""
HOUR = timedelta(hours=1)
ORPHAN_AGE = HOUR
SWEEP_LATE_S = 60.0
"""By how much a round that deletes what came to be old meanwhile begins later than all of it is."""
PRUNE_EVERY_S = 600.0
"""Copies grow old while nothing is written, and a full spool lets nothing be written: they are pruned by the clock."""


class Tidying:
    """Maintenance by policy, in a thread of its own. `lock`: the driver's, held to correct banks and sums alone."""

    def __init__(
        self,
        writer: Writer,
        config: StreamConfig,
        lock: AbstractContextManager[Any],
        fenced: Callable[[WriterFenced], None],
    ) -> None:
        self.problem = ""
        """Why the last round failed, or empty."""
        self._writer, self._config, self._lock, self._fenced = writer, config, lock, fenced
        self._rows, self._commits = writer.ledger.seq, writer.store.commits
        tombstones = writer.ledger.tombstones
        fresh = bool(tombstones) and time.time() - tombstones[-1].time.timestamp() < ERASE_AGAIN_S
        self._erase_due = 0.0 if fresh else math.inf
        self._swept = (-1, -1)
        self._sweep_due = 0.0 if tombstones else math.inf
        self._prune_due = time.monotonic() + PRUNE_EVERY_S
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maintenance", daemon=True)

    def start(self) -> None:
        """Begin to look for work."""
        self._thread.start()

    def stop(self) -> None:
        """Begin no round any more. One in progress may be cut short at any place, and is not waited for long."""
        self._stop.set()
        self._thread.join(timeout=5)

    def erase_soon(self) -> None:
        """Have what tombstones cover deleted in a few seconds."""
        self._erase_due = min(self._erase_due, time.monotonic() + ERASE_AFTER_S)

    @property
    def pushed(self) -> Files:
        """The folder of pushed images."""
        return open_files(push_path(self._config), self._config.storage_options)

    def _run(self) -> None:
        while not self._stop.wait(LOOK_S):
            erase = time.monotonic() >= self._erase_due
            if erase:
                self._erase_due = math.inf  # what is asked for during the round is for the next
            try:
                if erase or self._has_grown() or self._may_sweep():
                    self.tidy(erase)
                elif time.monotonic() >= self._prune_due:
                    self._prune()
                else:
                    continue
                self.problem = ""
            except WriterFenced as error:
                self._fenced(error)
            except Exception as error:
                # A full or unreachable disk, a file that is gone: reported, and tried again.
                self._erase_due = 0.0 if erase else self._erase_due
                self.problem = f"maintenance: {trouble_words(error)}"
                log.exception("maintenance failed: %s", self.problem)
                self._stop.wait(RETRY_S)

    def _prune(self) -> int:
        self._prune_due = time.monotonic() + PRUNE_EVERY_S
        keep_s = self._config.store.keep_pushed_h * 3600
        store = self._writer.store
        return prune_pushed(store, self.pushed, keep_s) + prune_copied(store, keep_s)

    def _has_grown(self) -> bool:
        store, writer = self._config.store, self._writer
        rows, commits = writer.ledger.seq - self._rows, writer.store.commits - self._commits
        return rows >= store.maintain_every_rows or commits >= store.maintain_every_commits

    def _may_sweep(self) -> bool:
        """Return whether files may have come to be old enough to be deleted, with something erased in them. Of
        uncommitted files only age says that nobody writes them; on an idle stream nothing else begins a round."""
        if not self._writer.ledger.tombstones:
            return False
        if self._sweep_due == math.inf and self._state != self._swept:
            self._sweep_due = self._sweep_time()
        return time.monotonic() >= self._sweep_due

    @property
    def _state(self) -> tuple[int, int]:
        """What changes whenever files may have been left: the last rows of ledger and versions."""
        return self._writer.ledger.seq, self._writer.tree.seq

    def _sweep_time(self) -> float:
        hours = math.ceil(max(timedelta(hours=self._config.store.retention_h), ORPHAN_AGE) / HOUR)
        return time.monotonic() + hours * HOUR.total_seconds() + SWEEP_LATE_S

    def tidy(self, erase: bool) -> None:
        """Make one round; `erase`: without leaving replaced files for anybody who still reads them."""
        store = self._config.store
        retention = timedelta(hours=store.retention_h)
        with self._lock:
            # Before the rows that both need are deleted.
            forget_in_banks(self._writer)
            forget_in_sums(self._writer)
            covered = self._writer.ledger.newest_tombstone
        report = self._writer.maintain(
            MaintenancePolicy(
                retention=timedelta(0) if erase else retention,
                log_retention=retention,
                orphan_age=ORPHAN_AGE,
                keep_versions=store.keep_versions,
            ),
            covered,
        )
        pruned = self._prune()
        self._rows, self._commits = self._writer.ledger.seq, self._writer.store.commits
        self._sweep_due = self._sweep_time() if erase or self._state != self._swept else math.inf
        self._swept = self._state
        log.info("maintenance: %s, %d pushed or copied files pruned", report, pruned)
