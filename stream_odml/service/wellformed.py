"""What every request must be before anything is looked up by it: meant for this stream, with an address in UTF-8 and
headers that say one thing.

Protects: several streams on one machine never take each other's pushes, whatever a port or a proxy leads to; no request
is taken for another one. Servers and frameworks replace bytes that are no text by U+FFFD, which is
a character that a name may have, and of a header that comes twice they take the first here and the last there.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

from stream_odml.service.errors import ApiError, bad_request, unavailable

STREAM_HEADER = "X-Stream-Id"
"""In an answer: the stream that gives it. In a request: the stream that it is meant for."""
_KEY = STREAM_HEADER.lower().encode()
_ONCE = (b"content-type", b"content-encoding", b"idempotency-key")


def check_request(scope: Scope) -> None:
    """Raise ApiError 400 for an address that is no UTF-8 text, and for a header twice of which one counts."""
    _check_text("path", scope.get("raw_path") or b"")
    _check_text("query string", scope["query_string"])
    names = [name for name, _ in scope["headers"]]
    for name in _ONCE:
        if names.count(name) > 1:
            raise bad_request(f"the header {name.decode()} comes twice", "send it once")


def _check_text(part: str, written: bytes) -> None:
    if not written.isascii():
        raise bad_request(f"the {part} of the address holds bytes that are not ASCII", "percent-encode it")
    if b"%" not in written:
        return
    try:
        unquote_to_bytes(written).decode()
    except UnicodeDecodeError:
        raise bad_request(
            f"the {part} of the address is not UTF-8 text", "percent-encode the bytes of its UTF-8 form"
        ) from None


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
