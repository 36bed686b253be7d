"""What the service asks of the one writer: requests that only the driver may carry out, refused while it is away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream_odml.service.errors import ApiError, not_found, unavailable
from stream_odml.store.errors import UnknownSubject, UnknownVersion


class Driver:
    """What the service asks of the driver; this one is away, as where a service runs alone over a store: reads work.
    All raise ApiError: 503 while it is away, 404 for what it does not know."""

    async def forget(self, kind: str, name: str) -> Mapping[str, Any]:
        """Forget an ``item`` or a ``class``."""
        raise driver_away()

    async def rollback(self, version: str, relearn: bool) -> Mapping[str, Any]:
        """Move the head."""
        raise driver_away()

    async def relearn(self, task: str, anyway: bool) -> Mapping[str, Any]:
        """Learn a refused or skipped task after all."""
        raise driver_away()

    async def status(self) -> Mapping[str, Any]:
        """Return the driver's own status."""
        raise driver_away()


def refusal(cause: BaseException) -> ApiError:
    """Return the error that a client gets for one of the driver."""
    if isinstance(cause, UnknownVersion | UnknownSubject):
        return not_found("unknown_subject", str(cause)[:500])
    if isinstance(cause, ValueError):
        return ApiError(409, "refused", "the driver refused the request", "look at its log for the reason")
    return unavailable("driver_failed", "the driver failed on the request", 5)


def driver_away() -> ApiError:
    """Return the answer to a request that needs the driver while it does not answer."""
    return unavailable(
        "driver_away", "the driver does not answer", 5, "try again; searching goes on meanwhile"
    )
