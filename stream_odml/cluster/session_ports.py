"""TCP ports that belong to one local session: a block that no other session on this machine uses meanwhile.

Protects: streams never meet in a port. Ray Serve binds its fallback proxy with SO_REUSEPORT, which lets a second
session share it silently, and the port of a replica that ended is taken by the next one that starts, whosever it is,
while a proxy may still send requests there.
"""

from __future__ import annotations

import os
import socket

FIRST_PORT, END_PORT = 20_000, 32_768
"""Below what Linux gives to outgoing connections."""
BLOCK_PORTS = 256
_FALLBACK_HTTP, _FALLBACK_GRPC, _STATS, _METRICS, _AUTOSCALER, _DASHBOARD = range(1, 7)
_AGENTS, _REPLICAS, _REPLICAS_GRPC = 8, 32, BLOCK_PORTS - 8
_AGENT_PORTS = (
    "metrics_agent_port",
    "metrics_export_port",
    "dashboard_agent_listen_port",
    "runtime_env_agent_port",
)


class NoPorts(RuntimeError):
    """Every block of ports is in use."""


class PortBlock:
    """A block of ports, held by a socket that is bound to its first one: the kernel frees it with this process."""

    def __init__(self) -> None:
        starts = list(range(FIRST_PORT, END_PORT - BLOCK_PORTS + 1, BLOCK_PORTS))
        # Else the block of a session that ends is taken by the next that starts.
        turn = os.getpid() % len(starts)
        for start in starts[turn:] + starts[:turn]:
            holder = _claim(start)
            if holder is not None:
                self._holder, self.first = holder, start
                return
        raise NoPorts(
            f"no block of {BLOCK_PORTS} free ports is left from {FIRST_PORT} to {END_PORT}; end another stream on "
            "this machine"
        )

    def environment(self) -> dict[str, str]:
        """Return the variables that keep Ray and Ray Serve within the block."""
        ports = {
            "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": _FALLBACK_HTTP,
            "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": _FALLBACK_GRPC,
            "RAY_SERVE_HAPROXY_STATS_PORT": _STATS,
            "RAY_SERVE_HAPROXY_METRICS_PORT": _METRICS,
            "AUTOSCALER_METRIC_PORT": _AUTOSCALER,
            "DASHBOARD_METRIC_PORT": _DASHBOARD,
            "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": _REPLICAS,
            "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": _REPLICAS_GRPC,
            "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": _REPLICAS_GRPC,
            "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": BLOCK_PORTS,
        }
        return {name: str(self.first + offset) for name, offset in ports.items()}

    def agents(self, attempt: int) -> dict[str, int]:
        """Return the ports of Ray's agents, as its parameters name them; others for each attempt to start."""
        first = self.first + _AGENTS + attempt * len(_AGENT_PORTS)
        return {name: first + number for number, name in enumerate(_AGENT_PORTS)}

    def close(self) -> None:
        """Give the block back."""
        self._holder.close()


def _claim(start: int) -> socket.socket | None:
    """Return the socket that holds the block, or None if any of its ports is in use: what is left of a
    session counts."""
    holder = _bound(start)
    if holder is None:
        return None
    for port in range(start + 1, start + BLOCK_PORTS):
        probe = _bound(port)
        if probe is None:
            holder.close()
            return None
        probe.close()
    return holder


def _bound(port: int) -> socket.socket | None:
    """Return a socket on the port of every interface; not shared, so that a port which is, is in use."""
    probe = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        probe.bind(("0.0.0.0", port))
    except OSError:
        probe.close()
        return None
    return probe
