"""As much of a Kafka broker as asks for a password and refuses it; it keeps what it was told.

The format: https://kafka.apache.org/protocol (lengths before texts, big-endian).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Iterator

API_VERSIONS, SASL_HANDSHAKE, SASL_AUTHENTICATE = 18, 17, 36
REFUSED = 58
KEYS = ((API_VERSIONS, 3), (SASL_HANDSHAKE, 1), (SASL_AUTHENTICATE, 0), (1, 11), (3, 9))


@contextlib.contextmanager
def refusing_broker() -> Iterator[tuple[str, list[bytes]]]:
    """Yield its address and, as they come, what clients authenticate with."""
    reported: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, reported), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}", reported


def _serve(server: socket.socket, reported: list[bytes]) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_answer, args=(client, reported), daemon=True).start()


def _answer(client: socket.socket, reported: list[bytes]) -> None:
    with client, contextlib.suppress(OSError, struct.error), client.makefile("rb") as source:
        while True:
            (size,) = struct.unpack(">i", source.read(4))
            request = source.read(size)
            key, _, number, length = struct.unpack(">hhih", request[:10])
            body = request[10 + max(0, length) :]
            answer = struct.pack(">i", number)
            if key == API_VERSIONS:
                rows = b"".join(struct.pack(">hhhB", name, 0, newest, 0) for name, newest in KEYS)
                answer += struct.pack(">hB", 0, len(KEYS) + 1) + rows + struct.pack(">iB", 0, 0)
            elif key == SASL_HANDSHAKE:
                answer += struct.pack(">hih5s", 0, 1, 5, b"PLAIN")
            elif key == SASL_AUTHENTICATE:
                reported.append(body[4:])
                why = b"Authentication failed"
                answer += struct.pack(f">hh{len(why)}si", REFUSED, len(why), why, 0)
            client.sendall(struct.pack(">i", len(answer)) + answer)
