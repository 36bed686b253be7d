"""The typed client, synchronous and asynchronous, with retries that never do a thing twice.

Repeated: reads, deletes and pushes (which carry a key), after a lost connection or when the service says so
(429, 502, 503, 504), no sooner than its Retry-After. Not repeated: a rollback.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Self, TypeVar, Unpack

import httpx
import numpy.typing as npt

from stream_odml.client import answers, calls
from stream_odml.client.calls import Call, Image, NewImage, Options, Vector
from stream_odml.client.exchange import (
    ClientError,
    ServiceError,
    ServiceUnreachable,
    address,
    headers,
    request,
    result,
    wait_s,
)
from stream_odml.client.pin import StreamPin, WrongStream

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "NewImage",
    "ServiceError",
    "ServiceUnreachable",
    "WrongStream",
]

T = TypeVar("T")


class Client:
    """Synchronous client. Safe to share between threads; close it, or use it in a `with`.

    `stream` is the id of the stream to talk to; by default the one that answers first. `timeout` in seconds for
    each attempt; `retries` attempts after the first. Every method raises ServiceError (WrongStream when another
    stream answers, `unexpected_answer` when none does) or ServiceUnreachable, and ValueError for what cannot be sent.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        stream: str | None = None,
        timeout: float = 10.0,
        retries: int = 4,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._pin = StreamPin(stream)
        self._http = httpx.Client(
            base_url=address(url), headers=headers(token), timeout=timeout, transport=transport
        )

    def search_image(self, image: Image, **options: Unpack[Options]) -> answers.SearchResult:
        """Return neighbours of an image: encoded bytes, or the path of a file."""
        return self._send(calls.search_image(image, options))

    def search_vector(
        self, vector: Vector, version: str | None = None, **options: Unpack[Options]
    ) -> answers.SearchResult:
        """Return neighbours of a vector [d] made by `version`; an older one is mapped, an unknown one refused."""
        return self._send(calls.search_vector(vector, version, options))

    def search_batch(
        self, vectors: npt.NDArray[Any], version: str | None = None, **options: Unpack[Options]
    ) -> list[answers.SearchResult]:
        """Return neighbours of each row of `vectors` [n, d], all given by one version."""
        return self._send(calls.search_batch(vectors, version, options))

    def embed(self, images: Sequence[Image]) -> answers.Embedded:
        """Return vectors of images, raw, and the version that made them: what `search_vector` takes later on."""
        return self._send(calls.embed(images))

    def map_between(self, start: str, end: str = "head") -> bytes:
        """Return the map from vectors of version `start` into the space of `end`, as the bytes of an npz file."""
        return self._send(calls.map_between(start, end))

    def push(self, images: Sequence[NewImage], key: str | None = None) -> answers.PushResult:
        """Land images; returns once they are durable. The same `key` lands them once."""
        return self._send(calls.push(images, key))

    def push_vectors(
        self,
        vectors: npt.NDArray[Any],
        classes: Sequence[str | None],
        ids: Sequence[str] | None = None,
        attributes: Sequence[Mapping[str, str]] | None = None,
        key: str | None = None,
    ) -> answers.PushResult:
        """Land vectors [n, d] of a stream of vectors; a class may be None until `label` says it."""
        return self._send(calls.push_vectors(vectors, classes, ids, attributes, key))

    def label(self, item_id: str, class_name: str) -> answers.PushResult:
        """Say the class of an item; it is learnt with the next task."""
        return self._send(calls.label(item_id, class_name))

    def get(self, item_id: str) -> answers.StoredItem:
        """Return one item."""
        return self._send(calls.get(item_id))

    def delete(self, item_id: str) -> dict[str, Any]:
        """Ask for an item to be forgotten."""
        return self._send(calls.delete(item_id))

    def delete_shard(self, shard_id: str) -> dict[str, Any]:
        """Forget all items of a shard."""
        return self._send(calls.delete_shard(shard_id))

    def delete_class(self, name: str) -> dict[str, Any]:
        """Ask for a class to be forgotten."""
        return self._send(calls.delete_class(name))

    def classes(
        self, since: datetime | None = None, limit: int = 1000, offset: int = 0
    ) -> list[answers.ClassInfo]:
        """Return classes, newest first; only those first seen after `since`."""
        return self._send(calls.classes(since, limit, offset))

    def sample(self, limit: int = 1000, class_name: str | None = None) -> answers.Sample:
        """Return ids and classes of the gallery's items (of one class), a fixed sample of them where there are more
        than `limit`: from 3 to 20,000."""
        return self._send(calls.sample(limit, class_name))

    def thumbnail(self, item_id: str) -> bytes:
        """Return a small encoded image of an item; ServiceError with status 404 where none is kept."""
        return self._send(calls.thumbnail(item_id))

    def versions(self) -> answers.Versions:
        """Return the tree of versions."""
        return self._send(calls.versions())

    def diff(self, a: str, b: str) -> dict[str, Any]:
        """Return figures and classes that changed from version `a` to `b`."""
        return self._send(calls.diff(a, b))

    def rollback(self, version: str, relearn: bool = True) -> dict[str, Any]:
        """Ask for another version to be served."""
        return self._send(calls.rollback(version, relearn))

    def relearn(self, task: str, anyway: bool = False) -> dict[str, Any]:
        """Ask for a refused or skipped task to be learnt after all; `anyway`: published whatever the gate finds."""
        return self._send(calls.relearn(task, anyway))

    def status(self) -> dict[str, Any]:
        """Return what is served, and how far behind the stream it is."""
        return self._send(calls.status())

    def _send(self, call: Call[T]) -> T:
        for attempt in range(self._retries + 1):
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = self._http.send(request(self._http, call, self._pin.headers()))
            except httpx.RequestError as error:
                outcome = error
            self._pin.check(outcome)
            pause_s = wait_s(call, outcome, attempt, self._retries)
            if pause_s is None:
                break
            time.sleep(pause_s)
        return result(call, outcome)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncClient:
    """The same for asyncio; see `Client` for the meaning of every method."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        stream: str | None = None,
        timeout: float = 10.0,
        retries: int = 4,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._retries = retries
        self._pin = StreamPin(stream)
        self._http = httpx.AsyncClient(
            base_url=address(url), headers=headers(token), timeout=timeout, transport=transport
        )

    async def search_image(self, image: Image, **options: Unpack[Options]) -> answers.SearchResult:
        """Return neighbours of an image."""
        return await self._send(calls.search_image(image, options))

    async def search_vector(
        self, vector: Vector, version: str | None = None, **options: Unpack[Options]
    ) -> answers.SearchResult:
        """Return neighbours of a vector [d]."""
        return await self._send(calls.search_vector(vector, version, options))

    async def search_batch(
        self, vectors: npt.NDArray[Any], version: str | None = None, **options: Unpack[Options]
    ) -> list[answers.SearchResult]:
        """Return neighbours of each row of `vectors` [n, d]."""
        return await self._send(calls.search_batch(vectors, version, options))

    async def embed(self, images: Sequence[Image]) -> answers.Embedded:
        """Return vectors of images, and the version that made them."""
        return await self._send(calls.embed(images))

    async def map_between(self, start: str, end: str = "head") -> bytes:
        """Return the map from vectors of version `start` into the space of `end`."""
        return await self._send(calls.map_between(start, end))

    async def push(self, images: Sequence[NewImage], key: str | None = None) -> answers.PushResult:
        """Land images."""
        return await self._send(calls.push(images, key))

    async def push_vectors(
        self,
        vectors: npt.NDArray[Any],
        classes: Sequence[str | None],
        ids: Sequence[str] | None = None,
        attributes: Sequence[Mapping[str, str]] | None = None,
        key: str | None = None,
    ) -> answers.PushResult:
        """Land vectors [n, d] of a stream of vectors; a class may be None until `label` says it."""
        return await self._send(calls.push_vectors(vectors, classes, ids, attributes, key))

    async def label(self, item_id: str, class_name: str) -> answers.PushResult:
        """Say the class of an item; it is learnt with the next task."""
        return await self._send(calls.label(item_id, class_name))

    async def get(self, item_id: str) -> answers.StoredItem:
        """Return one item."""
        return await self._send(calls.get(item_id))

    async def delete(self, item_id: str) -> dict[str, Any]:
        """Forget an item."""
        return await self._send(calls.delete(item_id))

    async def delete_shard(self, shard_id: str) -> dict[str, Any]:
        """Forget all items of a shard."""
        return await self._send(calls.delete_shard(shard_id))

    async def delete_class(self, name: str) -> dict[str, Any]:
        """Forget a class."""
        return await self._send(calls.delete_class(name))

    async def classes(
        self, since: datetime | None = None, limit: int = 1000, offset: int = 0
    ) -> list[answers.ClassInfo]:
        """Return classes, newest first."""
        return await self._send(calls.classes(since, limit, offset))

    async def sample(self, limit: int = 1000, class_name: str | None = None) -> answers.Sample:
        """Return ids and classes of the gallery's items."""
        return await self._send(calls.sample(limit, class_name))

    async def thumbnail(self, item_id: str) -> bytes:
        """Return a small encoded image of an item."""
        return await self._send(calls.thumbnail(item_id))

    async def versions(self) -> answers.Versions:
        """Return the tree of versions."""
        return await self._send(calls.versions())

    async def diff(self, a: str, b: str) -> dict[str, Any]:
        """Return what changed between two versions."""
        return await self._send(calls.diff(a, b))

    async def rollback(self, version: str, relearn: bool = True) -> dict[str, Any]:
        """Serve another version."""
        return await self._send(calls.rollback(version, relearn))

    async def relearn(self, task: str, anyway: bool = False) -> dict[str, Any]:
        """Learn a refused or skipped task after all."""
        return await self._send(calls.relearn(task, anyway))

    async def status(self) -> dict[str, Any]:
        """Return what is served."""
        return await self._send(calls.status())

    async def _send(self, call: Call[T]) -> T:
        for attempt in range(self._retries + 1):
            outcome: httpx.Response | httpx.RequestError
            try:
                outcome = await self._http.send(request(self._http, call, self._pin.headers()))
            except httpx.RequestError as error:
                outcome = error
            self._pin.check(outcome)
            pause_s = wait_s(call, outcome, attempt, self._retries)
            if pause_s is None:
                break
            await asyncio.sleep(pause_s)
        return result(call, outcome)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
