"""From the service to the driver: requests that only the one writer may carry out, refused while it is away."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from stream_odml.service.errors import ApiError, not_found, unavailable
from stream_odml.store.errors import UnknownSubject, UnknownVersion


class Driver(Protocol):
    """What the service asks of the driver. All raise ApiError: 503 while it is away, 404 for what it does not know."""

    async def forget(self, kind: str, name: str) -> Mapping[str, Any]:
        """Forget an ``item`` or a ``class``."""

    async def rollback(self, version: str, relearn: bool) -> Mapping[str, Any]:
        """Move the head."""

    async def relearn(self, task: str, anyway: bool) -> Mapping[str, Any]:
        """Learn a refused or skipped task after all."""

    async def status(self) -> Mapping[str, Any]:
        """What the driver says of itself."""


class NoDriver:
    """A service that runs alone over a store: reads work, requests to the writer do not."""

    async def forget(self, kind: str, name: str) -> Mapping[str, Any]:
        raise _away()

    async def rollback(self, version: str, relearn: bool) -> Mapping[str, Any]:
        raise _away()

    async def relearn(self, task: str, anyway: bool) -> Mapping[str, Any]:
        raise _away()

    async def status(self) -> Mapping[str, Any]:
        raise _away()


class RayDriver:
    """The named actor, looked up at every call: it may have been restarted by another process, and on a cluster
    where several streams come and go it may be another stream's, which is asked for nothing."""

    def __init__(
        self, name: str, namespace: str, timeout_s: float, stream_id: Callable[[], str | None]
    ) -> None:
        self._name, self._namespace, self._timeout_s = name, namespace, timeout_s
        self._stream_id = stream_id

    async def forget(self, kind: str, name: str) -> Mapping[str, Any]:
        return await self._call("request_forget", kind, name)

    async def rollback(self, version: str, relearn: bool) -> Mapping[str, Any]:
        return await self._call("request_rollback", version, relearn)

    async def relearn(self, task: str, anyway: bool) -> Mapping[str, Any]:
        return await self._call("request_relearn", task, anyway)

    async def status(self) -> Mapping[str, Any]:
        return await self._call("status")

    async def _call(self, method: str, *arguments: Any) -> Mapping[str, Any]:
        import ray

        loop = asyncio.get_running_loop()
        try:  # looking up a name is a blocking round trip to the head node
            actor = await loop.run_in_executor(
                None, lambda: ray.get_actor(self._name, namespace=self._namespace)
            )
            async with asyncio.timeout(self._timeout_s):
                if await actor.stream_id.remote() != self._stream_id():
                    raise _away()
                answer: Mapping[str, Any] = await getattr(actor, method).remote(*arguments)
                return answer
        except ray.exceptions.RayTaskError as error:
            raise refusal(error.cause) from None
        except (ValueError, ray.exceptions.RayError, TimeoutError):
            raise _away() from None


def refusal(cause: BaseException) -> ApiError:
    """What a client is told of an error of the driver."""
    if isinstance(cause, UnknownVersion | UnknownSubject):
        return not_found("unknown_subject", str(cause)[:500])
    if isinstance(cause, ValueError):
        return ApiError(409, "refused", "the driver refused the request", "look at its log for the reason")
    return unavailable("driver_failed", "the driver failed on the request", 5)


def _away() -> ApiError:
    return unavailable(
        "driver_away", "the driver does not answer", 5, "try again; searching goes on meanwhile"
    )
