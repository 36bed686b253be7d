"""Calls to the driver that outlive its restarts."""

from __future__ import annotations

import time
from typing import Any

import ray

from stream_odml.cluster.runtime import NAMESPACE

DRIVER_NAME = "StreamDriver"
PATIENCE_S = 60.0


class DriverGone(RuntimeError):
    """The driver did not come back; the stream has ended, or was taken over by another run."""


def driver_handle() -> Any:
    """Return the named actor. Raises ValueError when there is none."""
    return ray.get_actor(DRIVER_NAME, namespace=NAMESPACE)


def call_driver(method: str, *args: Any) -> Any:
    """Call and wait, again if the driver died meanwhile: every method of it may be repeated.

    Raises DriverGone after a minute without a driver, and what the method itself raises.
    """
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
