"""Tier 1 as the driver runs it: what lands is ledgered, given to an indexer, and committed once.

Protects: a shard is committed in exactly one transaction, whoever dies meanwhile; a shard that ends its process
again and again is set aside; bytes that are only out of reach are asked for again and never quarantined.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import ray

from stream_odml.cluster.indexer import IndexedBatch
from stream_odml.config import IngestConfig
from stream_odml.gallery.ledger import ShardState
from stream_odml.gallery.store import Store
from stream_odml.gallery.writer import IngestBatch, Writer
from stream_odml.stream.reasons import Reason
from stream_odml.stream.shard import ShardRef
from stream_odml.stream.sources import Source

log = logging.getLogger(__name__)
RETRY_S = 2.0
IN_FLIGHT = 2
"""Batches an indexer has at once: one to work on, one waiting, so that it never idles between two."""


class Discovery:
    """Polls the sources in a thread of its own, so that a slow listing never holds a commit."""

    def __init__(self, sources: Iterable[Source], store: Store, poll_s: float) -> None:
        self.error: str | None = None
        self._sources = list(sources)
        self._found: queue.Queue[list[ShardRef]] = queue.Queue(maxsize=8)
        self._stamps = {str(shard.detail.get("stamp", "")) for shard in store.ledger.shards.values()}
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """End after the poll in progress."""
        self._stop.set()
        self._thread.join(timeout=10)

    def take(self) -> list[ShardRef] | None:
        """What one poll found, or None when there is nothing more."""
        with contextlib.suppress(queue.Empty):
            return self._found.get_nowait()
        return None

    def _run(self) -> None:
        while not self._stop.is_set():
            found = sum(self._poll(source) for source in self._sources)
            if not found:  # a backlog comes in portions: fetch the next at once
                self._stop.wait(self._poll_s)

    def _poll(self, source: Source) -> int:
        try:
            refs = source.poll(self._stamps)
            self.error = None
        except OSError as error:  # an unreachable source: say so, and ask again
            self.error = f"{type(error).__name__}: {error}"
            log.warning("a source cannot be listed, asking again: %s", self.error)
            return 0
        self._stamps.update(ref.stamp for ref in refs)
        while refs and not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._found.put(refs, timeout=0.5)
                break
        return len(refs)


@dataclass
class _Work:
    shards: list[ShardRef]
    indexer: int


@dataclass
class _Deferred:
    """Shards whose bytes were out of reach, with the time at which to ask again."""

    until: dict[str, float] = field(default_factory=dict)

    def put(self, shard_id: str) -> None:
        self.until[shard_id] = time.monotonic() + RETRY_S

    def blocks(self, shard_id: str) -> bool:
        return self.until.get(shard_id, 0.0) > time.monotonic()


class Ingestion:
    """Not thread-safe: the driver calls it from its one loop, under its lock."""

    def __init__(self, writer: Writer, indexers: list[Any], config: IngestConfig) -> None:
        self._writer = writer
        self._indexers = indexers
        self._config = config
        self._work: dict[Any, _Work] = {}
        self._busy: set[str] = set()
        self._suspects: set[str] = set()
        self._deferred = _Deferred()
        self._uncommitted: list[IndexedBatch] = []

    def land(self, refs: list[ShardRef]) -> None:
        """Ledger what is new among ``refs``."""
        known = self._writer.store.ledger.shards
        new = [ref for ref in refs if ref.shard_id not in known]
        if new:
            self._writer.record_landed(new)

    def dispatch(self, version: str) -> None:
        """Give landed shards to indexers that have room, in landing order."""
        load = [sum(work.indexer == i for work in self._work.values()) for i in range(len(self._indexers))]
        waiting = [s for s in self._writer.store.ledger.in_state("landed") if self._is_free(s)]
        while waiting and min(load) < IN_FLIGHT:
            target = load.index(min(load))
            batch = self._take(waiting)
            refs = [shard_ref(state) for state in batch]
            call = self._indexers[target].index.remote(refs, version)
            self._work[call] = _Work(refs, target)
            self._busy.update(ref.shard_id for ref in refs)
            load[target] += 1

    def _is_free(self, shard: ShardState) -> bool:
        return shard.shard_id not in self._busy and not self._deferred.blocks(shard.shard_id)

    def _take(self, waiting: list[ShardState]) -> list[ShardState]:
        """Remove the next batch from ``waiting``; a suspect of ending its process goes alone."""
        batch, size = [waiting.pop(0)], 0
        if self._is_suspect(batch[0]):
            return batch
        size = batch[0].size_bytes
        while waiting and len(batch) < self._config.batch_shards and not self._is_suspect(waiting[0]):
            size += waiting[0].size_bytes
            if size > self._config.batch_bytes:
                break
            batch.append(waiting.pop(0))
        return batch

    def _is_suspect(self, shard: ShardState) -> bool:
        return shard.attempts > 0 or shard.shard_id in self._suspects

    def gather(self, timeout_s: float) -> list[IndexedBatch]:
        """Wait up to ``timeout_s`` for indexers and return what they finished (no lock is needed)."""
        if not self._work:
            time.sleep(timeout_s)
            return []
        done, _ = ray.wait(list(self._work), num_returns=len(self._work), timeout=timeout_s, fetch_local=True)
        finished = []
        for call in done:
            work = self._work.pop(call)
            try:
                finished.append(ray.get(call))
            except ray.exceptions.RayError as error:
                self._failed(work, error)
        return finished

    def _failed(self, work: _Work, error: Exception) -> None:
        log.warning("indexing of %d shard(s) failed: %s", len(work.shards), str(error).splitlines()[-1:])
        self._busy.difference_update(ref.shard_id for ref in work.shards)
        if len(work.shards) > 1:
            self._suspects.update(ref.shard_id for ref in work.shards)
            return
        shard_id = work.shards[0].shard_id
        tries = self._writer.store.ledger.shards[shard_id].attempts + 1
        reason = f"{Reason.KILLED_READER}: {type(error).__name__}"
        self._writer.set_aside(shard_id, reason, final=tries >= self._config.tries)

    def commit(self, batches: list[IndexedBatch]) -> list[ShardState]:
        """Commit what indexers finished in one transaction and return the shards as ledgered.

        What could not be committed (a full disk) is kept and tried again at the next call.
        """
        self._uncommitted += batches
        for batch in batches:
            for shard_id, reason in batch.retry.items():
                log.warning("shard %s is out of reach, asking again: %s", shard_id, reason)
                self._deferred.put(shard_id)
                self._busy.discard(shard_id)
        ready = [batch for batch in self._uncommitted if batch.counts]
        if not ready:
            self._uncommitted = []
            return []
        self._writer.commit_ingest(_transaction(ready))
        self._uncommitted = []
        ids = [count.shard_id for batch in ready for count in batch.counts]
        self._busy.difference_update(ids)
        self._suspects.difference_update(ids)
        return [self._writer.store.ledger.shards[shard_id] for shard_id in ids]


def _transaction(batches: list[IndexedBatch]) -> IngestBatch:
    counts = [count for batch in batches for count in batch.counts]
    return IngestBatch(
        [count.shard_id for count in counts],
        pa.concat_tables([batch.rows for batch in batches]),
        pa.concat_tables([batch.quarantine for batch in batches]),
        {c.shard_id: {"trainable": c.trainable, "reasons": c.reasons} for c in counts},
    )


def shard_ref(state: ShardState) -> ShardRef:
    """The reference that landed, from the ledger's row."""
    return ShardRef.from_dict(dict(state.detail))
