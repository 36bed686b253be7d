"""A thread that follows the store: builds the next bundle aside and swaps one reference. Needs no driver."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from stream_odml.learn.memory import give_back_memory
from stream_odml.models.mismatch import CanaryMismatch
from stream_odml.search.feature_cache import FeatureCache
from stream_odml.search.search import SearchSettings
from stream_odml.service.bundle import Bundle, load_bundle, next_bundle
from stream_odml.service.errors import unavailable
from stream_odml.service.metrics import ServiceMetrics
from stream_odml.store.errors import NoVersionYet
from stream_odml.store.store import Store

log = logging.getLogger(__name__)


class Puller:
    """Keeps `bundle` at the store's latest commit. The store belongs to this thread alone."""

    def __init__(
        self,
        open_store: Callable[[], Store],
        settings: SearchSettings,
        poll_s: float,
        metrics: ServiceMetrics,
        cache: FeatureCache | None = None,
    ) -> None:
        self.bundle: Bundle | None = None
        """What is served now. Replaced, never changed: a reader takes it once and keeps to it."""
        self.stream_id: str | None = None
        """Of the stream that is followed, known once its root was opened."""
        self.checked_at = 0.0
        """When the store was last seen, in seconds since the epoch."""
        self.swaps = 0
        self.refusal: str | None = None
        """Why the store's head is not served: its model failed its canaries."""
        self._open, self._settings, self._poll_s, self._metrics = open_store, settings, poll_s, metrics
        self._cache = cache
        self._store: Store | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="puller", daemon=True)

    def start(self) -> None:
        """Load what there is, then follow. Raises nothing: a store that cannot be read yet is tried again."""
        self.poll()
        self._thread.start()

    def close(self) -> None:
        """Stop following."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def serving(self) -> Bundle:
        """Return what is served now. Raises ApiError 503 while nothing is."""
        if self.bundle is None:
            raise unavailable("not_ready", self.refusal or "no model version is loaded yet")
        return self.bundle

    @property
    def alive(self) -> bool:
        """Return whether the thread still follows the store."""
        return self._thread.is_alive()

    def poll(self) -> bool:
        """Look once; True if something new is served. Failures are counted and leave the served bundle as it is."""
        began = time.perf_counter()
        try:
            bundle = self._look()
        except NoVersionYet:
            self.checked_at = time.time()
            return False
        except CanaryMismatch as mismatch:
            self._refuse(str(mismatch))
            return False
        except Exception:
            # Whatever it is (a table half deleted, an object store away), answering from what is loaded is better.
            log.exception("the store could not be followed; serving what is loaded")
            self._metrics.poll_errors.inc()
            self._store = None
            return False
        self.checked_at, self.refusal = time.time(), None
        if bundle is self.bundle:
            return False
        self._swap(bundle, time.perf_counter() - began)
        return True

    def _refuse(self, reason: str) -> None:
        """Note why the head is not served. What is loaded is: by another model queries would be of another space."""
        if reason != self.refusal:
            log.error("the head is not served: %s", reason)
        self.refusal, self.checked_at = reason, time.time()
        self._metrics.poll_errors.inc()

    def _look(self) -> Bundle:
        if self._store is None:
            self._store = self._open()
            self.stream_id = self._store.stream_id
        else:
            self._store.refresh()
        if self.bundle is None:
            if self._cache is None and self._store.form == "exact":  # a temporary one
                self._cache = FeatureCache()
            return load_bundle(self._store, self._settings, self._cache)
        return next_bundle(self._store, self.bundle)

    def _swap(self, bundle: Bundle, seconds: float) -> None:
        before, self.bundle = self.bundle, bundle
        self.swaps += 1
        metrics, now = self._metrics, time.time()
        metrics.swap.observe(seconds)
        metrics.gallery_items.set(len(bundle.snapshot))
        metrics.gallery_bytes.set(sum(bundle.snapshot.memory().values()))
        metrics.search_recall.set(bundle.snapshot.recall)
        metrics.sequence.set(bundle.sequence)
        metrics.observe_served(bundle.version, bundle.committed_at)
        # Here, for what tells it runs on the event loop; the list itself waits to be asked for.
        _ = bundle.class_count
        if before is None:
            return
        if before.version != bundle.version:
            metrics.lag.observe(max(0.0, now - bundle.committed_at))
        seen = before.snapshot.ledger.seq
        for shard in bundle.snapshot.ledger.shards.values():
            if shard.indexed_seq is not None and shard.indexed_seq > seen:
                metrics.searchable.observe(max(0.0, now - shard.landed_at.timestamp()))
        give_back_memory()  # scattered pages of what building a gallery needed would add up, swap by swap

    def _run(self) -> None:
        while not self._stop.wait(self._poll_s):
            self.poll()
