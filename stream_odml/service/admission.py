"""Who is worked for and whose body is still awaited: two bounds, so that one client leaves room for the others.

Protects: a client that sends slowly holds none of the places of those who are answered, and a peer that holds many
places keeps no other from its first ones.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from stream_odml.service.errors import ApiError, too_large, unavailable


class Places:
    """`limit` places. One peer alone may take all; a peer with less than its share of them gets one even then, until
    twice as many are taken."""

    def __init__(self, limit: int) -> None:
        self._limit, self._taken = limit, 0
        self._held: Counter[str] = Counter()

    def has_room(self, peer: str) -> bool:
        """Return whether `peer` would get a place."""
        if self._taken < self._limit:
            return True
        held = self._held.get(peer, 0)
        share = self._limit // (len(self._held) + (held == 0))
        return self._taken < 2 * self._limit and held < max(1, share)

    @contextlib.contextmanager
    def place(self, peer: str) -> Iterator[None]:
        """Hold a place for `peer`. Raises ApiError 503 when there is none."""
        if not self.has_room(peer):
            raise overloaded(self._taken)
        self._taken += 1
        self._held[peer] += 1
        try:
            yield
        finally:
            self._taken -= 1
            self._held[peer] -= 1
            if not self._held[peer]:
                del self._held[peer]


def overloaded(taken: int) -> ApiError:
    """Return error 503: the replica is at its limit of concurrent requests."""
    return unavailable("overloaded", f"{taken} requests are being answered already")


class _Arrival:
    def __init__(self, peer: str) -> None:
        self.peer, self.seen, self.complete = peer, 0, False
        self.timeout: asyncio.Timeout | None = None


class Arrivals:
    """Bodies that arrive or are worked on: at most `count` that arrive, and `total_bytes` of them all. Beyond the
    number, the oldest of the peer with most is let go; beyond the bytes, the largest that still arrives. A client that
    just sends what it has is neither."""

    def __init__(self, count: int, total_bytes: int, body_bytes: int, timeout_s: float) -> None:
        self._count, self._total_bytes = count, total_bytes
        self._body_bytes, self._timeout_s = body_bytes, timeout_s
        self._bytes = 0
        self._arriving: dict[str, dict[_Arrival, None]] = {}  # by peer, each from its oldest on
        self._number = 0

    @contextlib.contextmanager
    def arrival(self, peer: str) -> Iterator[_Arrival]:
        """Account for one body as long as the block lasts."""
        arrival = _Arrival(peer)
        try:
            yield arrival
        finally:
            self._remove(arrival)
            self._bytes -= arrival.seen

    async def read(self, arrival: _Arrival, receive: Receive) -> bytes:
        """Return the whole body. Raises ApiError: 408 when it is too slow, 413 when it is too large, 503 when there is
        no room for it; and ClientDisconnect."""
        self._arriving.setdefault(arrival.peer, {})[arrival] = None
        self._number += 1
        if self._number > self._count:
            most = max(self._arriving.values(), key=lambda of_peer: len(of_peer))
            self._let_go(next(iter(most)))  # the oldest
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(self._timeout_s) as arrival.timeout:
                while not arrival.complete:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise ClientDisconnect
                    parts.append(message.get("body", b""))
                    arrival.complete = not message.get("more_body", False)
                    self._account(arrival, len(parts[-1]))
        except TimeoutError:
            raise ApiError(
                408,
                "body_timeout",
                f"the body did not arrive within {self._timeout_s:g} s, or faster ones needed its place",
                "send it faster, or in smaller requests",
                {"Connection": "close"},
            ) from None
        finally:
            self._remove(arrival)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _account(self, arrival: _Arrival, count: int) -> None:
        arrival.seen += count
        self._bytes += count
        if arrival.seen > self._body_bytes:
            raise too_large(self._body_bytes)
        if self._bytes > self._total_bytes:
            largest = max((one for peer in self._arriving.values() for one in peer), key=lambda one: one.seen)
            if largest is arrival:
                raise unavailable("overloaded", "the bodies of other requests fill the memory for them")
            self._let_go(largest)

    def _remove(self, arrival: _Arrival) -> None:
        """Take `arrival` out of those that arrive, if it is one of them."""
        of_peer = self._arriving.get(arrival.peer, {})
        if arrival in of_peer:
            del of_peer[arrival]
            self._number -= 1
            if not of_peer:
                del self._arriving[arrival.peer]

    def _let_go(self, arrival: _Arrival) -> None:
        self._remove(arrival)
        self._bytes -= arrival.seen  # not when its task runs again: another one would be refused for them
        arrival.seen = 0
        if arrival.timeout is not None and arrival.timeout.when() is not None:
            arrival.timeout.reschedule(0.0)
