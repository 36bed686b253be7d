"""Which stream answers: every answer names it, and a request meant for another one is refused before it is read.

Protects: several streams on one machine never take each other's pushes, whatever a port or a proxy leads to.
"""

from __future__ import annotations

from collections.abc import Iterable

from stream_odml.service.errors import ApiError, unavailable

STREAM_HEADER = "X-Stream-Id"
"""In an answer: the stream that gives it. In a request: the stream that it is meant for."""
_KEY = STREAM_HEADER.lower().encode()


def check_stream(headers: Iterable[tuple[bytes, bytes]], own: str | None) -> None:
    """Raise ApiError for a request that names another stream than `own`: 421, or 503 before that is known."""
    asked = {value.decode("latin-1").strip() for name, value in headers if name == _KEY}
    if not asked - {own}:
        return
    if own is None:
        raise unavailable("not_ready", "the stream is not read yet")
    raise ApiError(
        421,
        "wrong_stream",
        f"the request is meant for another stream than {own}, which answers here",
        f"correct the address of the service, or the header {STREAM_HEADER}",
    )
