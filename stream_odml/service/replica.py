"""One replica over a stream root: the Backend that the API serves, following the store, with or without a driver."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from stream_odml.config.service import ServiceOptions
from stream_odml.search.feature_cache import FeatureCache
from stream_odml.search.hits import Hit
from stream_odml.search.search import SearchSettings
from stream_odml.service.answering import Answering
from stream_odml.service.backend import (
    ClassTable,
    Driver,
    Item,
    MapRequest,
    Query,
    RefusedRow,
    Served,
    VersionHistory,
)
from stream_odml.service.catalogue import plane
from stream_odml.service.errors import ApiError, unavailable, version_named
from stream_odml.service.metrics import ServiceMetrics
from stream_odml.service.puller import Puller
from stream_odml.service.push import PushInbox, Takes
from stream_odml.service.refused_rows import RefusedRows
from stream_odml.service.thumbnails import Thumbnails
from stream_odml.storage.files import open_files
from stream_odml.store.layout import PUSH
from stream_odml.store.ledger import LedgerState
from stream_odml.store.sequence import has_reached
from stream_odml.store.store import Store
from stream_odml.store.table import Table

WAIT_STEP_S = 0.02
DRIVER_NEWS_S = 1.0
"""Seconds a driver's status may be repeated to other askers."""


class Replica:
    """Serves `root`. `start` before the first request; close it at the end."""

    def __init__(
        self,
        root: str,
        options: ServiceOptions,
        driver: Driver | None = None,
        storage_options: dict[str, str] | None = None,
        name: str = "local",
    ) -> None:
        self.metrics = ServiceMetrics()
        settings = SearchSettings(
            options.search, options.approximate_above, options.recall_target, threads=options.search_threads
        )
        kept = options.features_dir
        self.puller = Puller(
            partial(Store.open, root, storage_options),
            settings,
            options.poll_s,
            self.metrics,
            None if kept is None else FeatureCache(kept),
        )
        self._options, self._name = options, name
        driver = driver or Driver()
        self._driver_status = driver.status
        self._thumbnails = Thumbnails(open_files(root, storage_options))
        self._refused = RefusedRows(
            lambda: Table(open_files(root, storage_options), "quarantine", storage_options)
        )
        self._answering = Answering(options, self.puller.serving)
        self._inbox = PushInbox(
            options.push_dir or f"{root.rstrip('/')}/{PUSH}",
            self._answering.decoding,
            storage_options,
            self._takes,
        )
        # What a part answers by itself is asked of the part, without a step in between.
        self.search, self.push = self._answering.search, self._inbox.push
        self.embed, self.map_between = self._answering.embed, self._answering.map_between
        self.forget, self.rollback, self.relearn = driver.forget, driver.rollback, driver.relearn
        self.metrics_text = self.metrics.text
        self._waiting = 0
        self._news: tuple[float, Mapping[str, Any]] = (0.0, {})

    def start(self) -> None:
        """Load the served version and follow the store."""
        self.puller.start()

    def close(self) -> None:
        """End every thread."""
        self.puller.close()
        self._answering.close()
        self._inbox.close()

    def _takes(self) -> Takes | None:
        bundle = self.puller.bundle
        if bundle is None:
            return None
        model = bundle.embedder
        return Takes(model.out_dim if model.takes_vectors else None, bundle.snapshot.space.head is not None)

    def served(self) -> Served:
        bundle = self.puller.serving()
        snapshot = bundle.snapshot
        return Served(
            version=bundle.version,
            sequence=bundle.sequence,
            items=len(snapshot),
            classes=bundle.class_count,
            dim=snapshot.dim,
            committed_at=bundle.committed_at,
            loaded_at=bundle.loaded_at,
            checked_at=self.puller.checked_at,
            replica=self._name,
            searcher=snapshot.searcher,
            recall=snapshot.recall,
            memory_bytes=sum(snapshot.memory().values()),
            swaps=self.puller.swaps,
        )

    def ready(self) -> str | None:
        if self.puller.bundle is None:
            return self.puller.refusal or "no model version is loaded yet"
        unseen = time.time() - self.puller.checked_at
        if unseen > self._options.stale_after_s:
            return f"the store was last seen {unseen:.0f} s ago"
        return None

    def stream_id(self) -> str | None:
        return self.puller.stream_id

    async def wait_for(self, query: Query) -> None:
        if self._reached(query):
            return
        deadline = time.monotonic() + self._options.wait_s
        if self._waiting >= self._options.max_ongoing_requests // 4:  # the others are for who can be answered
            deadline = 0.0
        self._waiting += 1
        try:
            while not self._reached(query):
                if time.monotonic() >= deadline:
                    raise unavailable(
                        "not_yet_served", "what min_version or min_seq asks for is not served yet"
                    )
                await asyncio.sleep(WAIT_STEP_S)
        finally:
            self._waiting -= 1

    def _reached(self, query: Query) -> bool:
        bundle = self.puller.serving()
        if query.min_version is not None and version_named(bundle.snapshot.tree, query.min_version) is None:
            return False
        return query.min_seq is None or has_reached(bundle.sequence, query.min_seq)

    async def item(self, item_id: str) -> Item | None:
        return await asyncio.to_thread(self._item, item_id)

    def _item(self, item_id: str) -> Item | None:
        found = self._find(item_id)
        return None if found is None else Item(found, self._thumbnails.has(found.shard_id))

    def _find(self, item_id: str) -> Hit | None:
        snapshot = self.puller.serving().snapshot
        row = snapshot.find(item_id)
        return None if row is None else snapshot.item(row)

    async def thumbnail(self, item_id: str) -> bytes | None:
        return await asyncio.to_thread(self._thumbnail, item_id)

    def _thumbnail(self, item_id: str) -> bytes | None:
        found = self._find(item_id)  # a forgotten item has no picture any more
        return None if found is None else self._thumbnails.get(found.shard_id, item_id)

    def classes(self) -> ClassTable:
        bundle = self.puller.serving()
        return ClassTable(bundle.version, bundle.sequence, bundle.classes)

    def refused_rows(self, limit: int) -> Sequence[RefusedRow]:
        snapshot = self.puller.serving().snapshot
        return self._refused.newest(snapshot.ledger, snapshot.tree, limit)

    async def versions(self) -> VersionHistory:
        return self.puller.serving().history

    def projection(self, asked: MapRequest) -> Mapping[str, Any]:
        bundle = self.puller.serving()
        return plane(bundle.snapshot, [row.name for row in reversed(bundle.classes)], asked)

    async def status(self) -> Mapping[str, Any]:
        bundle = self.puller.serving()
        ledger, learnt = bundle.snapshot.ledger, bundle.snapshot.tree.learnt(bundle.version)
        quarantined = await self._refused.counts(ledger)
        return {"lag": _lag(ledger, learnt), "quarantined": quarantined, "driver": await self._driver_news()}

    async def _driver_news(self) -> Mapping[str, Any] | None:
        now = time.monotonic()
        if now - self._news[0] > DRIVER_NEWS_S:
            try:
                news = await self._driver_status()
            except ApiError:
                news = {}
            self._news = (now, news)
        return self._news[1] or None


def _lag(ledger: LedgerState, learnt: frozenset[str]) -> dict[str, float]:
    """Return the lag of the served version behind what has landed, ages in seconds."""
    oldest = min((shard.landed_at.timestamp() for shard in ledger.landed.values()), default=time.time())
    return {
        "unindexed_shards": len(ledger.landed),
        "unindexed_age_s": round(max(0.0, time.time() - oldest), 3),
        "waiting_images": sum(shard.rows for shard in ledger.indexed.values()),
        "due_tasks": len(ledger.due_tasks(learnt)),
    }
