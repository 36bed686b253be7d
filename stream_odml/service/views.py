"""Large answers about one state of the gallery: written one at a time on a thread of their own, and kept as bytes.

Protects: who asks for all classes or for a map of the gallery, however often, takes neither the event loop nor more
than one thread from those who search.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from stream_odml.service.backend import Backend
from stream_odml.service.pool import ShortestFirst
from stream_odml.service.replies import encoded, json_response
from stream_odml.store.recent import Recent

KEPT = 16
"""Answers that are kept, of at most some two megabytes each."""
State = tuple[str, int, float]
Key = tuple[State, tuple[object, ...]]


class Views:
    """The answers of one app, by the state that they show and by what was asked."""

    def __init__(self) -> None:
        self._thread = ShortestFirst(1, "views")
        self._kept: Recent[Key, bytes] = Recent(KEPT)

    async def get(self, key: Key, cost: float, make: Callable[[], Mapping[str, Any]]) -> bytes:
        """Return `make()` as JSON, made on the thread unless it is kept; of those waiting the least `cost` is next."""
        body = self._kept.find(key)
        if body is None:  # on the thread it is looked for again: another asker's turn may have come first
            body = await self._thread.run(cost, self._kept.get, key, lambda: encoded(make()))
        return body


async def view(
    request: Request,
    backend: Backend,
    asked: tuple[object, ...],
    cost: float,
    make: Callable[[], Mapping[str, Any]],
) -> Response:
    """Answer with `make()`, which only depends on what is served now and on what was `asked`."""
    served = backend.served()
    state = (served.version, served.sequence, served.loaded_at)
    views: Views = request.app.state.views
    return json_response(await views.get((state, asked), cost, make))
