"""As much of a Kafka broker as asks for a password and refuses it; it keeps what it was told."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator

from tests.ingest.wire_broker import API_VERSIONS, answering, versions

SASL_HANDSHAKE, SASL_AUTHENTICATE = 17, 36
REFUSED = 58
KEYS = ((API_VERSIONS, 3), (SASL_HANDSHAKE, 1), (SASL_AUTHENTICATE, 0), (1, 11), (3, 9))


@contextlib.contextmanager
def refusing_broker() -> Iterator[tuple[str, list[bytes]]]:
    """Yield its address and, as they come, what clients authenticate with."""
    reported: list[bytes] = []

    def answer(key: int, body: bytes, _: int) -> bytes:
        if key == API_VERSIONS:
            return versions(KEYS)
        if key == SASL_HANDSHAKE:
            return struct.pack(">hih5s", 0, 1, 5, b"PLAIN")
        if key == SASL_AUTHENTICATE:
            reported.append(body[4:])
            why = b"Authentication failed"
            return struct.pack(f">hh{len(why)}si", REFUSED, len(why), why, 0)
        return b""

    with answering(answer) as address:
        yield address, reported
