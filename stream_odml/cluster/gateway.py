"""From a replica to the driver actor: the service's requests to the one writer, over Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

import ray

from stream_odml.service.backend import Driver, driver_away, refusal


class RayDriver(Driver):
    """The named actor, looked up at every call: it may have been restarted by another process, and on a cluster
    where several streams come and go it may be another stream's, which is asked for nothing."""

    def __init__(
        self, name: str, namespace: str, timeout_s: float, stream_id: Callable[[], str | None]
    ) -> None:
        self._name, self._namespace, self._timeout_s = name, namespace, timeout_s
        self._stream_id = stream_id

    async def _call(self, method: str, *arguments: Any) -> Mapping[str, Any]:
        loop = asyncio.get_running_loop()
        try:  # looking up a name is a blocking round trip to the head node
            actor = await loop.run_in_executor(
                None, lambda: ray.get_actor(self._name, namespace=self._namespace)
            )
            async with asyncio.timeout(self._timeout_s):
                if await actor.stream_id.remote() != self._stream_id():
                    raise driver_away()
                answer: Mapping[str, Any] = await getattr(actor, method).remote(*arguments)
                return answer
        except ray.exceptions.RayTaskError as error:
            raise refusal(error.cause) from None
        except (ValueError, ray.exceptions.RayError, TimeoutError):
            raise driver_away() from None
