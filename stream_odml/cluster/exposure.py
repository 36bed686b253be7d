"""What a stream opens beyond this machine because it was asked to, in one line for whoever starts it."""

from __future__ import annotations

import ipaddress
import logging
import os

from stream_odml.config.stream import StreamConfig

log = logging.getLogger(__name__)
"""Shown at a person's terminal, where other warnings are not."""


def exposed_listeners(config: StreamConfig, is_local: bool) -> str | None:
    """Return the one warning about listeners that others can reach, or None when everything listens on the loopback.
    `is_local`: Ray is started for this stream, and not a cluster that listens as its owner chose."""
    service, metrics = config.service, config.metrics
    guarded = "with a token" if service.token() else "without a token"
    exposed = []
    if config.cluster.serve and not is_loopback(service.host):
        exposed.append(f"the search service ({service.host}:{service.port}, {guarded})")
    if config.cluster.serve and not is_loopback(service.metrics_host):
        exposed.append(f"the replicas' metrics ({service.metrics_host})")
    if not is_loopback(metrics.host):
        exposed.append(f"the driver's metrics ({metrics.host}:{metrics.port})")
    if is_local and os.environ.get("RAY_AUTH_MODE", "").lower() == "disabled":
        exposed.append("Ray itself, to every user of this machine (RAY_AUTH_MODE=disabled)")
    return f"open beyond this process, as asked: {'; '.join(exposed)}" if exposed else None


def is_loopback(host: str) -> bool:
    """Return whether only this machine reaches `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
