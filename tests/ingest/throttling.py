"""An object store that throttles: a proxy in front of a local S3 server that refuses a seeded share of requests.

A process of its own: clients in this one may hold the interpreter lock while they wait for an answer.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import json
import random
import socket
import struct
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from typing import Any

KINDS = ("slow_down", "reset", "lost_answer")
"""503 SlowDown; a connection that breaks off before the request was heard; and one after it was carried out."""
CONTROL = "/-/throttle"


class Throttle:
    """Requests pass, but for ``share`` of them, and but for those of :meth:`refuse`, which get a 503."""

    def __init__(self, behind: int, share: float = 0.0, seed: int = 0) -> None:
        self._command = [sys.executable, "-m", "tests.ingest.throttling", str(behind), str(share), str(seed)]
        self.port = 0

    @contextlib.contextmanager
    def serving(self) -> Iterator[Throttle]:
        """Listen on :attr:`port` until the block ends."""
        with subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            try:
                self.port = int(json.loads(child.stdout.readline())["port"])
                yield self
            finally:
                child.terminate()

    def refuse(self, count: int) -> None:
        """Refuse the next so many."""
        self._ask("POST", str(count))

    @property
    def passed(self) -> int:
        """Requests that went through."""
        return self._ask("GET").pop("pass", 0)

    @property
    def refused(self) -> dict[str, int]:
        """Others by kind."""
        return {kind: count for kind, count in self._ask("GET").items() if kind != "pass"}

    def _ask(self, method: str, body: str = "") -> dict[str, int]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, CONTROL, body)
        answer: dict[str, int] = json.loads(connection.getresponse().read())
        return answer


class _Verdicts:
    def __init__(self, share: float, seed: int) -> None:
        self._share, self._random, self._lock = share, random.Random(seed), threading.Lock()
        self.refuse, self.counts = 0, Counter[str]()

    def next(self) -> str:
        with self._lock:
            kind = "pass"
            if self.refuse > 0:
                self.refuse, kind = self.refuse - 1, "slow_down"
            elif self._random.random() < self._share:
                kind = self._random.choice(KINDS)
            self.counts[kind] += 1
            return kind


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # answers "Expect: 100-continue", which uploads wait for
    behind: int
    verdicts: _Verdicts

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass  # trailers
        return b"".join(parts)

    def _pass(self) -> None:
        body = self._body()
        if self.path == CONTROL:
            self.verdicts.refuse = int(body or 0) or self.verdicts.refuse
            self._answer(200, {}, json.dumps(self.verdicts.counts).encode())
            return
        kind = self.verdicts.next()
        if kind == "slow_down":
            self._answer(503, {"Content-Type": "application/xml"}, b"<Error><Code>SlowDown</Code></Error>")
            return
        if kind == "reset":
            self._break_off()
            return
        connection = http.client.HTTPConnection("127.0.0.1", self.behind)
        try:
            dropped = {"transfer-encoding", "expect", "connection", "content-length"}
            asked = {k: v for k, v in self.headers.items() if k.lower() not in dropped}
            connection.request(self.command, self.path, body, asked)
            answer = connection.getresponse()
            data = answer.read()
        except OSError:  # the server is ending
            self._break_off()
            return
        if kind == "lost_answer":
            self._break_off()
            return
        dropped = {"connection", "transfer-encoding", "server", "date"}
        headers = {k: v for k, v in answer.getheaders() if k.lower() not in dropped}
        self._answer(answer.status, headers, data)

    do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _pass

    def _break_off(self) -> None:
        # Without lingering the other side sees a reset and not an orderly end.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
        with contextlib.suppress(OSError):  # who asked has gone
            self.send_response(status)
            for name, value in ({"Content-Length": str(len(body)), "Connection": "close"} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # broken off on purpose
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main(behind: int, share: float, seed: int) -> None:
    """Serve until terminated; print the port, the URL, and where to steer and count, as JSON."""
    made = type("Handler", (_Handler,), {"behind": behind, "verdicts": _Verdicts(share, seed)})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), made)
    server.daemon_threads = True
    port = server.server_address[1]
    url = f"http://127.0.0.1:{port}"
    print(json.dumps({"port": port, "url": url, "control": url + CONTROL}), flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]))
