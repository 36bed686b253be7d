"""An object store that throttles: a proxy in front of a local S3 server that refuses a seeded share of requests."""

from __future__ import annotations

import contextlib
import http.client
import http.server
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

KINDS = ("slow_down", "reset", "lost_answer")
"""503 SlowDown; a connection that breaks off before the request was heard; and one after it was carried out."""


class Throttle:
    """Requests pass, but for ``share`` of them, and but for the next ``refuse`` ones, which get a 503."""

    def __init__(
        self, behind: int, share: float = 0.0, seed: int = 0, kinds: tuple[str, ...] = KINDS
    ) -> None:
        self.behind, self.share, self.refuse, self._kinds = behind, share, 0, kinds
        self.port = 0
        self.refused: Counter[str] = Counter()
        self.passed = 0
        self._random, self._lock = random.Random(seed), threading.Lock()

    def verdict(self) -> str:
        """What is to be done with the next request: one of KINDS, or "pass"."""
        with self._lock:
            kind = "pass"
            if self.refuse > 0:
                self.refuse, kind = self.refuse - 1, "slow_down"
            elif self._random.random() < self.share:
                kind = self._random.choice(self._kinds)
            if kind == "pass":
                self.passed += 1
            else:
                self.refused[kind] += 1
            return kind

    @contextlib.contextmanager
    def serving(self) -> Iterator[Throttle]:
        """Listen on :attr:`port` until the block ends."""
        handler = type("Handler", (_Handler,), {"throttle": self})
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.daemon_threads = True
        self.port = int(server.server_address[1])
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


class _Handler(http.server.BaseHTTPRequestHandler):
    throttle: Throttle

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kind = self.throttle.verdict()
        if kind == "slow_down":
            self._answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if kind == "reset":
            self._break_off()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.throttle.behind)
        connection.request(self.command, self.path, body, dict(self.headers))
        answer = connection.getresponse()
        data = answer.read()
        if kind == "lost_answer":
            self._break_off()
            return
        dropped = {"connection", "transfer-encoding", "server", "date"}
        self._answer(answer.status, {k: v for k, v in answer.getheaders() if k.lower() not in dropped}, data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass

    def _break_off(self) -> None:
        # Without lingering the other side sees a reset and not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            with contextlib.suppress(OSError):
                self.wfile.write(body)

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # broken off on purpose
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass
