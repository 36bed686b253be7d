"""The narrow seam between the API and what answers it: one Protocol and the values that cross it; and what of it only
the driver may carry out, refused while that is away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from stream_odml.ingest.landing import NewItem
from stream_odml.search.filters import Filters
from stream_odml.search.hits import Hit
from stream_odml.search.portable import PortableMap
from stream_odml.service.errors import ApiError, not_found, unavailable
from stream_odml.store.errors import UnknownSubject, UnknownVersion
from stream_odml.store.versions import VersionTree

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Query:
    """What to look for beside the vector: k, filters, and how new the answer must at least be."""

    k: int = 10
    filters: Filters = field(default_factory=Filters)
    group_by_class: bool = False
    group_size: int = 1
    min_version: str | None = None
    min_seq: int | None = None


@dataclass(frozen=True, slots=True)
class Question:
    """One query or many: encoded images, or vectors [n, d] made by `version` (None: the served one)."""

    subject: Floats | Sequence[bytes]
    query: Query
    version: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """Hits of each query, all from one snapshot: `version` and `sequence` name it."""

    version: str
    sequence: int
    hits: Sequence[Sequence[Hit]]


@dataclass(frozen=True, slots=True)
class Served:
    """What a replica serves now. Ages in seconds; times in seconds since the epoch."""

    version: str
    sequence: int
    items: int
    classes: int
    dim: int
    committed_at: float
    loaded_at: float
    checked_at: float
    replica: str = ""
    searcher: str = ""
    recall: float = 1.0
    """Of the searcher against exact search, measured when it was built."""
    memory_bytes: int = 0
    swaps: int = 0


@dataclass(frozen=True, slots=True)
class PushReceipt:
    """Proof that a push is durable: the shard it became and the id of each image, in order."""

    shard: str
    item_ids: Sequence[str]


@dataclass(frozen=True, slots=True)
class Item:
    """One item as the gallery holds it, and whether a thumbnail is kept."""

    stored: Hit
    has_thumbnail: bool


@dataclass(frozen=True, slots=True)
class ClassRow:
    """One class: how many items, when its first came, an item to show, and whether the model has learnt it."""

    name: str
    count: int
    first_seen: datetime | None
    sample: str
    learnt: bool


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Every class of one snapshot, newest first: `version` and `sequence` name it."""

    version: str
    sequence: int
    rows: Sequence[ClassRow]


@dataclass(frozen=True, slots=True)
class VersionHistory:
    """The tree of versions, and the tasks that its head has not learnt because they were refused or skipped."""

    tree: VersionTree
    sequence: int
    not_learnt: Sequence[Mapping[str, Any]] = ()
    """See `stream_odml.store.unlearnt`."""


@dataclass(frozen=True, slots=True)
class RefusedRow:
    """One row that could not be used; `row` is -1 where its file was refused as a whole."""

    shard: str
    row: int
    reason: str
    detail: str
    """What is wrong, behind the name of its file where it has one."""
    remedy: str
    time: datetime | None


@dataclass(frozen=True, slots=True)
class MapRequest:
    """What of the gallery to place in the plane, and what to say of each item."""

    points: int
    """Items at most."""
    attribute: str | None = None
    """One whose values to give."""
    errors: bool = False
    """Whether to tell items whose most similar other one is of another class."""
    neighbours: int = 0
    """How many of the most similar other ones to name for each."""
    class_name: str | None = None
    """Items of this class alone."""

    @property
    def cost(self) -> int:
        """Return how much there is to do, in items: comparing each with every other costs far more than placing it."""
        return self.points * self.points if self.errors or self.neighbours else self.points


@dataclass(frozen=True, slots=True)
class Embedded:
    """Raw vectors float32 [n, d] of images, and the version that made them."""

    version: str
    sequence: int
    vectors: Floats


class Backend(Protocol):
    """All that the API needs. Methods raise ApiError for what a client did wrong or must wait for."""

    def stream_id(self) -> str | None:
        """Return the immutable id of the stream, or None before its root was read."""

    def served(self) -> Served:
        """Return what is served now; raises ApiError 503 while nothing is."""

    def ready(self) -> str | None:
        """Return None if queries can be answered with fresh enough data, else the reason why not."""

    def metrics_text(self) -> bytes:
        """Return Prometheus exposition of this replica."""

    async def wait_for(self, query: Query) -> None:
        """Return when `min_version` and `min_seq` are served; ApiError 503 if that takes too long."""

    async def search(self, question: Question) -> Answer:
        """Return nearest items of vectors, raw or normalised, or of images by the served model; one snapshot."""

    async def embed(self, images: Sequence[bytes]) -> Embedded:
        """Embed encoded images by the served model; ApiError 422 for what is no image."""

    async def map_between(self, start: str, end: str) -> PortableMap:
        """Return the way from one version's vectors into another's space; ApiError 422 for one that is not kept."""

    async def push(self, images: Sequence[NewItem], key: str | None) -> PushReceipt:
        """Land the images durably as one shard; the same `key` gives the same receipt."""

    async def item(self, item_id: str) -> Item | None:
        """Return the item, or None."""

    async def thumbnail(self, item_id: str) -> bytes | None:
        """Return a small encoded image (JPEG or PNG) of the item, or None."""

    async def forget(self, kind: str, name: str) -> Mapping[str, Any]:
        """Ask the driver to forget an `item` or a `class`; ApiError 503 while it is away."""

    async def rollback(self, version: str, relearn: bool) -> Mapping[str, Any]:
        """Ask the driver to move the head; ApiError 503 while it is away."""

    async def relearn(self, task: str, anyway: bool) -> Mapping[str, Any]:
        """Ask the driver to learn a refused or skipped task after all; ApiError 503 while it is away."""

    def classes(self) -> ClassTable:
        """Return every class of the served gallery. May take a while: for a thread."""

    def refused_rows(self, limit: int) -> Sequence[RefusedRow]:
        """Return the newest rows that could not be used. May take a while: for a thread."""

    async def versions(self) -> VersionHistory:
        """Return the tree of versions as the served snapshot knows it."""

    def projection(self, asked: MapRequest) -> Mapping[str, Any]:
        """Return items of the served gallery in the plane, see `catalogue.plane`. May take a while: for a thread."""

    async def status(self) -> Mapping[str, Any]:
        """Return lag, queues, driver: whatever says how the stream is doing. Never raises for a dead driver."""


class Driver:
    """What the service asks of the driver; this one is away, as where a service runs alone over a store: reads work.
    All raise ApiError: 503 while it is away, 404 for what it does not know."""

    async def forget(self, kind: str, name: str) -> Mapping[str, Any]:
        """Forget an `item` or a `class`."""
        return await self._call("request_forget", kind, name)

    async def rollback(self, version: str, relearn: bool) -> Mapping[str, Any]:
        """Move the head."""
        return await self._call("request_rollback", version, relearn)

    async def relearn(self, task: str, anyway: bool) -> Mapping[str, Any]:
        """Learn a refused or skipped task after all."""
        return await self._call("request_relearn", task, anyway)

    async def status(self) -> Mapping[str, Any]:
        """Return the driver's own status."""
        return await self._call("status")

    async def _call(self, method: str, *arguments: Any) -> Mapping[str, Any]:
        raise driver_away()


def refusal(cause: BaseException) -> ApiError:
    """Return the error that a client gets for one of the driver."""
    if isinstance(cause, UnknownVersion | UnknownSubject):
        return not_found(
            "unknown_subject", str(cause)[:500], "look what there is under /v1/status and /v1/versions"
        )
    if isinstance(cause, ValueError):
        return ApiError(409, "refused", "the driver refused the request", "look at its log for the reason")
    return unavailable("driver_failed", "the driver failed on the request", 5)


def driver_away() -> ApiError:
    """Return the answer to a request that needs the driver while it does not answer."""
    return unavailable(
        "driver_away", "the driver does not answer", 5, "try again; searching goes on meanwhile"
    )
