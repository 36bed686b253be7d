"""What every request must be before anything is looked up by it: an address in UTF-8, headers that say one thing.

Protects: no request is taken for another one. Servers and frameworks replace bytes that are no text by U+FFFD, which is
a character that a name may have, and of a header that comes twice they take the first here and the last there.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import unquote_to_bytes

from starlette.types import Scope

from stream_odml.service.errors import bad_request

_ONCE = frozenset({b"content-type", b"content-encoding", b"idempotency-key"})


def check_request(scope: Scope) -> None:
    """Raise ApiError 400 for an address that is no UTF-8 text, and for a header twice of which one counts."""
    _check_text("path", scope.get("raw_path") or b"")
    _check_text("query string", scope["query_string"])
    _check_once(name for name, _ in scope["headers"])


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


def _check_once(names: Iterable[bytes]) -> None:
    seen: set[bytes] = set()
    for name in names:
        if name in _ONCE:
            if name in seen:
                raise bad_request(f"the header {name.decode()} comes twice", "send it once")
            seen.add(name)
