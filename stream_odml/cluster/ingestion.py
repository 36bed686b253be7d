"""Indexing as the driver runs it: what lands is ledgered, given to an indexer, and committed once.

Protects: a shard is committed in exactly one transaction, whoever dies meanwhile; a shard that ends its process, or
hangs it, repeatedly is dead-lettered; bytes that are only unreachable are asked for again and never quarantined.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import ray

from stream_odml.cluster.actors import IndexedBatch
from stream_odml.cluster.ray_compat import was_restarting
from stream_odml.config.stream import IngestConfig
from stream_odml.ingest.reasons import Reason
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import NOT_READ, LogFigures, LogSource, Source
from stream_odml.models.mismatch import CanaryMismatch
from stream_odml.pipeline.messages import shard_ref
from stream_odml.storage.refusals import trouble_words
from stream_odml.store.ledger_states import ShardState
from stream_odml.store.store import Store
from stream_odml.store.writer import IngestBatch, Writer
from stream_odml.wording import last_line, some

log = logging.getLogger(__name__)
RETRY_S = 2.0
TROUBLES_NAMED = 5
IN_FLIGHT = 2
"""Batches an indexer has at once: one to work on, one waiting, so that it never idles between two."""


class Discovery:
    """Polls the sources in a thread of its own, so that a slow listing never holds a commit."""

    def __init__(self, sources: Iterable[Source], store: Store, poll_s: float) -> None:
        self._errors: dict[int, str] = {}
        self._troubles: dict[str, str] = {}
        """Of partitions of logs, beside others that are read."""
        self._settle_due: dict[int, float] = {}
        self.failures = 0
        """Polls that failed."""
        self._sources = list(sources)
        self._logs = [source for source in self._sources if isinstance(source, LogSource)]
        self._store = store
        self._found: queue.Queue[list[ShardRef]] = queue.Queue(maxsize=8)
        self._stamps = {str(shard.detail.get("stamp", "")) for shard in store.ledger.shards.values()}
        moved = (shard for shard in store.ledger.shards.values() if shard.detail.get("moved"))
        self._moved = {shard.uri: shard.size_bytes for shard in moved}
        """Files of a restored root: their time of change is another one, and so may be their content hash."""
        self._poll_s = poll_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="discovery", daemon=True)

    @property
    def error(self) -> str | None:
        """Why a source, or a part of one, cannot be read now, or None."""
        named = [f"{place}: {trouble}" for place, trouble in sorted(self._troubles.items())]
        return "; ".join(filter(None, [*self._errors.values(), some(named, TROUBLES_NAMED, "; ")])) or None

    @property
    def notes(self) -> list[str]:
        """What lies in an inbox and is never read, a line for each source that tells."""
        found: list[Mapping[str, str]] = [getattr(source, "passed_over", {}) for source in self._sources]
        named = [[f"{name} is {kind}" for name, kind in sorted(passed.items())] for passed in found if passed]
        return [f"{len(names)} not read in the inbox: {some(names)}; {NOT_READ}" for names in named]

    def start(self) -> None:
        """Begin to poll."""
        self._thread.start()

    def stop(self) -> None:
        """End after the poll in progress."""
        self._stop.set()
        self._thread.join(timeout=10)
        for source in self._logs:
            source.close()

    def figures(self) -> list[LogFigures]:
        """Return how far each partition of each log is."""
        return [one for source in self._logs for one in source.figures()]

    def take(self) -> list[ShardRef] | None:
        """Return what one poll found, or None when there is nothing more."""
        with contextlib.suppress(queue.Empty):
            return self._found.get_nowait()
        return None

    def _run(self) -> None:
        while not self._stop.is_set():
            found = sum(self._poll(number) for number in range(len(self._sources)))
            if not found:  # a backlog comes in portions: fetch the next at once
                self._stop.wait(self._poll_s)

    def _poll(self, number: int) -> int:
        try:
            refs = self._sources[number].poll(self._stamps)
            self._errors.pop(number, None)
        except Exception as error:  # unreachable, or a gap in a table's log: say so, and go on asking
            self.failures += 1
            self._errors[number] = trouble_words(error)
            log.warning("a source cannot be listed, asking again: %s", self._errors[number])
            refs = []
        self._settle(number)  # what waits in a log grows, whether it is read or not
        self._stamps.update(ref.stamp for ref in refs)
        refs = [ref for ref in refs if self._moved.get(ref.uri) != ref.size_bytes]
        while refs and not self._stop.is_set():
            with contextlib.suppress(queue.Full):
                self._found.put(refs, timeout=0.5)
                break
            self._settle(number)
        return len(refs)

    def _settle(self, number: int) -> None:
        source = self._sources[number]
        if not isinstance(source, LogSource) or time.monotonic() < self._settle_due.get(number, 0.0):
            return
        ledger = self._store.ledger
        waiting = [str(shard.detail.get("stamp", "")) for shard in ledger.landed.values()]
        try:
            source.settle(waiting, ledger.shards.__contains__)
        except Exception as error:  # figures and lag tools only: what was found is landed all the same
            log.warning("how far a log is read is not known now: %s", error)
            self._settle_due[number] = time.monotonic() + RETRY_S
        self._note_troubles()

    def _note_troubles(self) -> None:
        """Log what begins and what is over."""
        before = self._troubles
        said = {one.place: "; ".join(filter(None, (one.trouble, one.warning))) for one in self.figures()}
        self._troubles = {place: text for place, text in said.items() if text}
        for place in self._troubles.keys() - before.keys():
            log.warning("%s is in trouble: %s", place, self._troubles[place])
        for place in before.keys() - self._troubles.keys():
            log.warning("%s is well again", place)


@dataclass
class _Work:
    shards: list[ShardRef]
    indexer: int
    alone: bool
    """One shard alone with its indexer: if that process ends, it is this shard that ended it."""


class Ingestion:
    """Not thread-safe: the driver calls it from its one loop, under its lock."""

    def __init__(
        self,
        writer: Writer,
        indexers: list[Any],
        config: IngestConfig,
        erased: Callable[[], None] = lambda: None,
    ) -> None:
        self._writer = writer
        self._erased = erased
        """Called when items were forgotten because a log says so."""
        self._indexers = indexers
        self._config = config
        self._work: dict[Any, _Work] = {}
        self._isolated: set[str] = set()
        """Shards that are read alone, as the process of the batch that they were in ended."""
        self._retry_at: dict[str, float] = {}
        """Shards whose bytes were unreachable, with the time at which to ask again."""
        self.unreachable = 0
        """Times that a shard could not be read and was put off."""
        self.problem = ""
        """Why landed shards wait, since an indexer failed and until one answers."""
        self._uncommitted: list[IndexedBatch] = []
        self._failed: list[tuple[_Work, Exception]] = []

    def land(self, refs: list[ShardRef]) -> None:
        """Record in the ledger what is new among `refs`."""
        known = self._writer.store.ledger.shards
        new: list[ShardRef] = []
        for ref in refs:
            if ref.shard_id in known:
                continue
            if ref.erases:
                # After all that came before it has landed, and before what comes after it: a tombstone covers what
                # landed earlier. Its shard lands behind it, so that a kill in between repeats it, which is harmless.
                self._writer.record_landed(new)
                new = []
                for item in ref.erases:
                    self._writer.forget("item", item)
                self._erased()
            new.append(ref)
        self._writer.record_landed(new)

    def dispatch(self, version: str) -> None:
        """Give landed shards to indexers that have room, in landing order. What waits for a commit that cannot be made
        holds everything back: memory stays bounded."""
        if self._uncommitted:
            return
        now, busy = time.monotonic(), {ref.shard_id for work in self._work.values() for ref in work.shards}
        landed = self._writer.store.ledger.landed.items()
        waiting = (s for name, s in landed if name not in busy and self._retry_at.get(name, 0.0) <= now)
        shard = next(waiting, None)
        while shard is not None:
            alone = self._needs_isolation(shard)
            target = self._free_indexer(alone)
            if target is None:
                return
            batch, shard = ([shard], next(waiting, None)) if alone else self._batch(shard, waiting)
            refs = [shard_ref(state) for state in batch]
            self._work[self._indexers[target].index.remote(refs, version)] = _Work(refs, target, alone)

    def _free_indexer(self, alone: bool) -> int | None:
        """Return the indexer with the least to do, or None. Nothing shares one with an isolated shard, nor its end."""
        load = [0.0] * len(self._indexers)
        for work in self._work.values():
            load[work.indexer] += math.inf if work.alone else 1
        least = min(load)
        return load.index(least) if least < (1 if alone else IN_FLIGHT) else None

    def _batch(
        self, first: ShardState, waiting: Iterator[ShardState]
    ) -> tuple[list[ShardState], ShardState | None]:
        """Return the next batch, and the shard that did not fit."""
        batch, size = [first], first.size_bytes
        for shard in waiting:
            size += shard.size_bytes
            full = len(batch) == self._config.batch_shards or size > self._config.batch_bytes
            if full or self._needs_isolation(shard):
                return batch, shard
            batch.append(shard)
        return batch, None

    def _needs_isolation(self, shard: ShardState) -> bool:
        return shard.attempts > 0 or shard.shard_id in self._isolated

    def gather(self, timeout_s: float) -> None:
        """Wait up to `timeout_s` for indexers and keep what they finished for `commit` (no lock is needed)."""
        if not self._work:
            time.sleep(timeout_s)
            return
        done, _ = ray.wait(list(self._work), num_returns=len(self._work), timeout=timeout_s, fetch_local=True)
        for call in done:
            work = self._work.pop(call)
            try:
                self._uncommitted.append(ray.get(call))
                self.problem = ""
            except ray.exceptions.RayError as error:
                self._failed.append((work, error))

    def _classify(self, work: _Work, error: Exception) -> None:
        """Note a failed batch. Where its indexer or its code failed each shard is read alone; failing alone counts."""
        log.warning("indexing of %d shard(s) failed: %s", len(work.shards), last_line(str(error)))
        if is_external_failure(error):
            is_dead = getattr(error, "actor_init_failed", False)
            then = "start the stream again" if is_dead else "they are tried again by themselves"
            self.problem = (
                f"landed shards wait, as indexers cannot work: {last_line(str(error))}; see their logs (of a local "
                f"run in logs/ under the root) and put that right: {then}"
            )
            for ref in work.shards:
                self._put_off(ref.shard_id)
            return
        self._isolated.update(ref.shard_id for ref in work.shards)
        if work.alone:
            shard_id = work.shards[0].shard_id
            tries = self._writer.store.ledger.shards[shard_id].attempts + 1
            how = f"{type(error).__name__}: it ended its process, or hung it for {self._config.hang_s:g} s"
            reason = f"{Reason.KILLED_READER}: {how}"
            self._writer.set_aside(shard_id, reason, final=tries >= self._config.tries)

    def _put_off(self, shard_id: str) -> None:
        self.unreachable += 1
        self._retry_at[shard_id] = time.monotonic() + RETRY_S

    def commit(self) -> list[ShardState]:
        """Commit what indexers finished in one transaction and return the shards as ledgered. What could not be
        committed (a full disk) is kept and tried again at the next call."""
        while self._failed:
            self._classify(*self._failed[0])
            self._failed.pop(0)
        ready = [shard for batch in self._uncommitted for shard in batch.done]
        if ready:
            self._writer.commit_ingest(IngestBatch.joined(ready))
        for batch in self._uncommitted:
            for shard_id, reason in batch.retry.items():
                log.warning("shard %s is unreachable, asking again: %s", shard_id, reason)
                self._put_off(shard_id)
        self._uncommitted = []
        ids = [shard_id for shard in ready for shard_id in shard.shard_ids]
        self._isolated.difference_update(ids)
        return [self._writer.store.ledger.shards[shard_id] for shard_id in ids]


def is_external_failure(error: Exception) -> bool:
    """Return whether the shards had no part in it: the indexer was away already, or could not be made, the stream root
    was unreachable, or the model failed its canaries there."""
    if isinstance(error, ray.exceptions.RayActorError):
        return was_restarting(error) or error.actor_init_failed
    return isinstance(getattr(error, "cause", None), OSError | CanaryMismatch)
