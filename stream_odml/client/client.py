"""The typed client, synchronous and asynchronous, with retries that never do a thing twice.

Repeated: reads, deletes and pushes (which carry a key), after a lost connection or when the service says so
(429, 502, 503, 504), no sooner than its Retry-After. Not repeated: a rollback.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from typing import Any, Generic, ParamSpec, Self, TypeVar, cast, overload

import httpx

from stream_odml.client import calls
from stream_odml.client.calls import Call
from stream_odml.client.exchange import (
    StreamPin,
    address,
    headers,
    request,
    result,
    wait_s,
)

T = TypeVar("T")
P = ParamSpec("P")
Http = TypeVar("Http", httpx.Client, httpx.AsyncClient)
Transport = TypeVar("Transport", httpx.BaseTransport, httpx.AsyncBaseTransport)


class _Method(Generic[P, T]):
    """The type of a method of both clients: one gives the answer, the other what is to be awaited."""

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...

    @overload
    def __get__(self, client: Client, owner: type) -> Callable[P, T]: ...

    @overload
    def __get__(self, client: AsyncClient, owner: type) -> Callable[P, Coroutine[Any, Any, T]]: ...

    def __get__(self, client: object, owner: type) -> Any: ...


def _method(make: Callable[P, Call[T]]) -> _Method[P, T]:
    """Return the method that sends the request that `make` gives, with the name, words and arguments of `make`."""

    def method(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        return self._send(make(*args, **kwargs))

    functools.update_wrapper(method, make)
    of, own = inspect.signature(make), inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    answer = of.return_annotation.removeprefix("Call[").removesuffix("]")
    signature = of.replace(parameters=[own, *of.parameters.values()], return_annotation=answer)
    method.__signature__ = signature  # type: ignore[attr-defined]
    return cast(_Method[P, T], method)


class _Methods(ABC, Generic[Http, Transport]):
    """What both clients have."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        token: str | None = None,
        *,
        stream: str | None = None,
        timeout: float = 10.0,
        retries: int = 4,
        transport: Transport | None = None,
    ) -> None:
        if retries < 0:
            raise ValueError(f"retries is {retries}; expected 0, for one attempt, or more")
        self._retries = retries
        self._pin = StreamPin(stream)
        self._http: Http = self._open(
            base_url=address(url), headers=headers(token), timeout=timeout, transport=transport
        )

    @abstractmethod
    def _open(self, **options: Any) -> Http: ...

    search_image = _method(calls.search_image)
    search_vector = _method(calls.search_vector)
    search_batch = _method(calls.search_batch)
    embed = _method(calls.embed)
    map_between = _method(calls.map_between)
    push = _method(calls.push)
    push_vectors = _method(calls.push_vectors)
    label = _method(calls.label)
    get = _method(calls.get)
    delete = _method(calls.delete)
    delete_shard = _method(calls.delete_shard)
    delete_class = _method(calls.delete_class)
    classes = _method(calls.classes)
    sample = _method(calls.sample)
    thumbnail = _method(calls.thumbnail)
    versions = _method(calls.versions)
    diff = _method(calls.diff)
    rollback = _method(calls.rollback)
    relearn = _method(calls.relearn)
    status = _method(calls.status)
    metrics = _method(calls.metrics)


class Client(_Methods[httpx.Client, httpx.BaseTransport]):
    """Synchronous client. Safe to share between threads; close it, or use it in a `with`.

    `stream` is the id of the stream to talk to; by default the one that answers first. `timeout` in seconds for
    each attempt; `retries` attempts after the first. Every method raises ServiceError (WrongStream when another
    stream answers, `unexpected_answer` when none does) or ServiceUnreachable, and ValueError for what cannot be sent.
    """

    def _open(self, **options: Any) -> httpx.Client:
        return httpx.Client(**options)

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


class AsyncClient(_Methods[httpx.AsyncClient, httpx.AsyncBaseTransport]):
    """The same for asyncio; see `Client` for the meaning of every method."""

    def _open(self, **options: Any) -> httpx.AsyncClient:
        return httpx.AsyncClient(**options)

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
