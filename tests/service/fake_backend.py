"""A Backend in memory: exact cosine search over a few vectors, for tests of the API and of the page."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np

from stream_odml.ingest.landing import NewItem
from stream_odml.search.hits import Hit
from stream_odml.search.portable import PortableMap
from stream_odml.service.backend import (
    Answer,
    ClassRow,
    ClassTable,
    Embedded,
    Floats,
    Item,
    MapRequest,
    PushReceipt,
    Query,
    Question,
    RefusedRow,
    Served,
    VersionHistory,
)
from stream_odml.service.catalogue import nearest
from stream_odml.service.errors import unavailable, unprocessable
from stream_odml.service.metrics import ServiceMetrics
from stream_odml.store.versions import HeadMove, Version, VersionTree

START = datetime(2026, 1, 1, tzinfo=UTC)


def unit(vectors: Floats) -> Floats:
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.asarray(vectors / lengths, dtype=np.float32)


def version_row(
    version_id: str, parent: str | None, task: str | None, time: datetime, metrics: dict[str, Any]
) -> Version:
    """A committed version, of which only what the service tells of it matters."""
    return Version(version_id, parent, task, {}, metrics, seq=0, time=time, epoch=1, depth=0)


@dataclass
class FakeBackend:
    """Classes c0, c1, … at random directions of the sphere in ``dim`` dimensions, ``per_class`` items each."""

    n_classes: int = 5
    per_class: int = 4
    dim: int = 8
    versions_list: list[Version] = field(default_factory=list)
    driver_alive: bool = True
    loaded: bool = True
    delay_s: float = 0.0
    pushed: dict[str, PushReceipt] = field(default_factory=dict)
    asked: list[tuple[str, ...]] = field(default_factory=list)
    metrics: ServiceMetrics = field(default_factory=ServiceMetrics)
    sequence: int = 7
    began: float = field(default_factory=time.time)
    stream: str | None = "11111111-1111-4111-8111-111111111111"

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        centres = rng.normal(size=(self.n_classes, self.dim))
        noise = rng.normal(size=(self.n_classes, self.per_class, self.dim)) * 0.1
        self.vectors = unit((centres[:, None] + noise).reshape(-1, self.dim).astype(np.float32))
        self.names = [f"c{i // self.per_class}" for i in range(len(self.vectors))]
        self.ids = [f"shard-1/{i}" for i in range(len(self.vectors))]
        self.times = [START + timedelta(hours=i) for i in range(len(self.vectors))]
        if not self.versions_list:
            self.versions_list = [
                version_row("v0000-aa", None, None, START, {"recall_at_1/union/served": 0.5}),
                version_row(
                    "v0001-bb",
                    "v0000-aa",
                    "task-0001",
                    START + timedelta(hours=1),
                    {"recall_at_1/union/served": 0.75, "recall_by_class": {"c0": 1.0}},
                ),
            ]
        self.head = self.versions_list[-1].version_id

    def served(self) -> Served:
        if not self.loaded:
            raise unavailable("not_ready", "no version is committed yet")
        served = (self.head, self.sequence, len(self.ids), self.n_classes, self.dim)
        return Served(*served, self.began - 60, self.began - 59, time.time())

    def ready(self) -> str | None:
        return None if self.loaded else "no version is committed yet"

    def metrics_text(self) -> bytes:
        return self.metrics.text()

    async def wait_for(self, query: Query) -> None:
        if query.min_seq is not None and query.min_seq > self.sequence:
            raise unavailable("not_yet_served", f"sequence {query.min_seq} is not served yet")

    async def search(self, question: Question) -> Answer:
        await asyncio.sleep(self.delay_s)
        vectors, version, query = self._vectors_of(question.subject), question.version, question.query
        if version is not None and version not in {row.version_id for row in self.versions_list}:
            raise unprocessable("unknown_version", f"no version {version!a}", "ask for another")
        if vectors.shape[1] != self.dim:
            raise unprocessable(
                "bad_vector", f"the vector has {vectors.shape[1]} values, not {self.dim}", "embed it again"
            )
        scores = unit(vectors) @ self.vectors.T
        return Answer(self.head, self.sequence, [self._hits(row, query) for row in scores])

    def _hits(self, scores: Floats, query: Query) -> list[Hit]:
        order = [i for i in np.argsort(-scores) if self._passes(int(i), query)]
        kept = order if query.group_by_class else order[: query.k]
        return [self._hit(i, float(scores[i])) for i in kept]

    def _hit(self, i: int, score: float) -> Hit:
        return Hit(self.ids[i], self.names[i], score, self.head, {}, self.times[i], "shard-1", False, i)

    def _passes(self, i: int, query: Query) -> bool:
        wanted = query.filters
        return (
            (wanted.classes is None or self.names[i] in wanted.classes)
            and not wanted.attributes
            and (wanted.since is None or self.times[i] >= wanted.since)
            and (wanted.until is None or self.times[i] < wanted.until)
        )

    def _vectors_of(self, subject: Floats | Sequence[bytes]) -> Floats:
        if isinstance(subject, np.ndarray):
            return subject
        if any(not image.startswith(b"\x89PNG") for image in subject):
            raise unprocessable("not_an_image", "the bytes are no image of a known format", "send one")
        return self.vectors[: len(subject)]

    def stream_id(self) -> str | None:
        return self.stream

    async def embed(self, images: Sequence[bytes]) -> Embedded:
        return Embedded(self.head, self.sequence, self._vectors_of(images))

    async def map_between(self, start: str, end: str) -> PortableMap:
        return PortableMap(start, self.head if end == "head" else end, ())

    async def push(self, images: Sequence[NewItem], key: str | None) -> PushReceipt:
        if key is not None and key in self.pushed:
            return self.pushed[key]
        name = f"push-{len(self.pushed)}"
        receipt = PushReceipt(name, [image.item_id or f"{name}/{i}" for i, image in enumerate(images)])
        self.pushed[key or name] = receipt
        return receipt

    async def item(self, item_id: str) -> Item | None:
        if item_id not in self.ids:
            return None
        i = self.ids.index(item_id)
        return Item(self._hit(i, 1.0), True)

    async def thumbnail(self, item_id: str) -> bytes | None:
        return b"\x89PNG-picture" if item_id in self.ids else None

    async def forget(self, kind: str, name: str) -> Mapping[str, Any]:
        return self._ask("forget", kind, name)

    async def rollback(self, version: str, relearn: bool) -> Mapping[str, Any]:
        return self._ask("rollback", version, str(relearn))

    async def relearn(self, task: str, anyway: bool) -> Mapping[str, Any]:
        return self._ask("relearn", task, str(anyway))

    def _ask(self, *what: str) -> Mapping[str, Any]:
        if not self.driver_alive:
            raise unavailable("driver_away", "the driver does not answer", 5)
        self.asked.append(what)
        return {"accepted": True}

    def classes(self) -> ClassTable:
        first = range(0, len(self.ids), self.per_class)
        rows = [ClassRow(self.names[i], self.per_class, self.times[i], self.ids[i], i == 0) for i in first]
        return ClassTable(self.head, self.sequence, rows[::-1])

    def refused_rows(self, limit: int) -> Sequence[RefusedRow]:
        return []

    async def versions(self) -> VersionHistory:
        versions = {row.version_id: row for row in self.versions_list}
        return VersionHistory(
            VersionTree(versions=versions, moves=(HeadMove(self.head, "", 0, START),)), self.sequence
        )

    def projection(self, asked: MapRequest) -> Mapping[str, Any]:
        ids, names, vectors = (
            self.ids[: asked.points],
            self.names[: asked.points],
            self.vectors[: asked.points],
        )
        numbers, classes = range(len(ids)), sorted(set(names))
        plane: dict[str, Any] = {
            "version": self.head,
            "sequence": self.sequence,
            "classes": classes,
            "ids": ids,
        }
        plane |= {"class": [classes.index(name) for name in names], "attributes": ["side"]}
        plane |= {"x": vectors[:, 0].tolist(), "y": vectors[:, 1].tolist()}
        if asked.attribute == "side":
            plane |= {"values": ["left", "right"], "value": [i % 2 for i in numbers]}
        if asked.errors:
            plane["differs"] = [i % 7 == 0 for i in numbers]
        if asked.neighbours:
            plane["neighbours"] = nearest(vectors, asked.neighbours).tolist()
        return plane

    async def status(self) -> Mapping[str, Any]:
        lag = {"unindexed_shards": 0, "unindexed_age_s": 0.0, "waiting_images": 0, "due_tasks": 0}
        return {"lag": lag, "driver": {"stage": {"phase": "idle"}} if self.driver_alive else None}
