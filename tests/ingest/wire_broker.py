"""A broker that answers requests of Kafka's protocol, one by one, as a test says.

The format: https://kafka.apache.org/protocol (lengths before texts, big-endian).
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Sequence

Answer = Callable[[int, bytes, int], bytes]
"""Key and body of a request and the broker's port, to the body of the answer."""
API_VERSIONS = 18


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """Yield the address of a broker; each client has a thread of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=_serve, args=(server, answer), daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def versions(keys: Sequence[tuple[int, int]]) -> bytes:
    """Return the answer to a client that asks for the newest version of each request."""
    rows = b"".join(struct.pack(">hhhB", key, 0, newest, 0) for key, newest in keys)
    return struct.pack(">hB", 0, len(keys) + 1) + rows + struct.pack(">iB", 0, 0)


def _serve(server: socket.socket, answer: Answer) -> None:
    with contextlib.suppress(OSError):
        while True:
            client, _ = server.accept()
            threading.Thread(target=_answer, args=(client, answer), daemon=True).start()


def _answer(client: socket.socket, answer: Answer) -> None:
    with client, contextlib.suppress(OSError, struct.error), client.makefile("rb") as source:
        while True:
            (size,) = struct.unpack(">i", source.read(4))
            request = source.read(size)
            key, _, number, length = struct.unpack(">hhih", request[:10])
            body = request[10 + max(0, length) :]
            found = struct.pack(">i", number) + answer(key, body, client.getsockname()[1])
            client.sendall(struct.pack(">i", len(found)) + found)
