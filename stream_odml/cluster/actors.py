"""The actors of a stream by their names: calls to the driver that outlive its restarts, and what the indexers answer.

Apart from the indexers' own module: a driver that restarts need not load torch.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import ray

from stream_odml.cluster.runtime import NAMESPACE
from stream_odml.store.tables import IngestBatch

DRIVER_NAME = "StreamDriver"
PATIENCE_S = 60.0


class DriverGone(RuntimeError):
    """The driver did not come back; the stream has ended, or was taken over by another run."""


def driver_handle() -> Any:
    """Return the named actor. Raises ValueError when there is none."""
    return ray.get_actor(DRIVER_NAME, namespace=NAMESPACE)


def call_driver(method: str, *args: Any) -> Any:
    """Call and wait, again if the driver died meanwhile: every method of it may be repeated. Raises DriverGone after a
    minute without a driver, and what the method itself raises."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            return ray.get(getattr(driver_handle(), method).remote(*args))
        except ray.exceptions.RayTaskError:
            raise  # the method's own error
        except (ray.exceptions.RayActorError, ValueError) as error:
            if time.monotonic() > deadline:
                raise DriverGone(f"the driver does not answer ({error}); start the stream again") from error
            time.sleep(0.5)


@dataclass(frozen=True)
class IndexedBatch:
    """What became of several shards. Those in neither were not begun, because those before them filled the batch."""

    done: list[IngestBatch]
    """One for each that is ready to be committed."""
    retry: dict[str, str]
    """Why the bytes of others were unreachable."""


def indexer_handles(count: int) -> list[Any]:
    """Return handles of the running indexers. Raises ValueError when there are none."""
    return [ray.get_actor(indexer_name(i), namespace=NAMESPACE) for i in range(count)]


def indexer_name(i: int) -> str:
    """Return the actor's name."""
    return f"Indexer-{i}"
