"""What one replica tells Prometheus. Each replica has its own exporter, since behind Serve none can be addressed."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, start_http_server
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream_odml.config.service import ServiceOptions
from stream_odml.observe.targets import announce, reachable, withdraw

PREFIX = "stream_odml"
KINDS = ("vector", "image", "batch", "push", "other")
OUTCOMES = ("ok", "client_error", "refused", "server_error", "gone")
LATENCY_BUCKETS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.03, 0.06, 0.12, 0.25, 0.5, 1, 2.5, 10)
SWAP_BUCKETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 15, 60)


class ServiceMetrics(Collector):
    """Registry of one replica. Names follow Prometheus: seconds, bytes, `_total` on counters."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._version = ""
        self._committed_at = 0.0
        of_replica: Any = {"namespace": PREFIX, "registry": self.registry}

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, **of_replica)

        def histogram(name: str, text: str) -> Histogram:
            return Histogram(name, text, buckets=SWAP_BUCKETS, **of_replica)

        self.queries = Counter("queries", "Requests by kind and outcome.", ("kind", "outcome"), **of_replica)
        self.latency = Histogram(
            "query_seconds", "Time to answer, by kind.", ("kind",), buckets=LATENCY_BUCKETS, **of_replica
        )
        self.gallery_items = gauge("gallery_items", "Items the replica can find.")
        self.gallery_bytes = gauge("gallery_bytes", "Memory the searcher of the replica holds.")
        self.search_recall = gauge(
            "search_recall",
            "Share of the exact 10 nearest that the searcher found when it was built; 1 if exact.",
        )
        self.sequence = gauge("served_sequence", "Ledger and version commits the replica has applied.")
        self.swap = histogram("swap_seconds", "Time to build the next snapshot aside and swap it in.")
        self.lag = histogram("commit_to_served_seconds", "Time from a version's commit to its serving.")
        self.searchable = histogram(
            "landed_to_served_seconds", "Time from a shard's landing to its being found by this replica."
        )
        self.poll_errors = Counter("store_poll_errors", "Looks at the store that failed.", **of_replica)
        self.registry.register(self)
        for kind, outcome in itertools.product(KINDS, OUTCOMES):  # a rate needs a zero to start from
            self.queries.labels(kind, outcome)

    def observe_request(self, kind: str, status: int, seconds: float) -> None:
        """Count one request; `status` 0 means that the client left before an answer."""
        self.queries.labels(kind, _outcome(status)).inc()
        self.latency.labels(kind).observe(seconds)

    def observe_served(self, version: str, committed_at: float) -> None:
        """Note the version now served; `committed_at` in seconds since the epoch."""
        self._version, self._committed_at = version, committed_at

    def collect(self) -> Iterable[Metric]:
        """Yield what must be computed at the scrape: the served version and its age."""
        info = GaugeMetricFamily(
            f"{PREFIX}_served_version_info", "1 for the served version.", labels=["version"]
        )
        age = GaugeMetricFamily(
            f"{PREFIX}_served_version_age_seconds", "Time since the served version's commit."
        )
        if self._version:
            info.add_metric([self._version], 1)
            age.add_metric([], max(0.0, time.time() - self._committed_at))
        yield info
        yield age

    def text(self) -> bytes:
        """Return the exposition text of this replica."""
        return generate_latest(self.registry)


def _outcome(status: int) -> str:
    if status == 0:
        return "gone"
    if status == 503 or status == 429:
        return "refused"
    return "ok" if status < 400 else "client_error" if status < 500 else "server_error"


class Exporter:
    """HTTP exporter of one replica, announced to Prometheus by a file_sd file that ends with the replica."""

    def __init__(
        self,
        metrics: ServiceMetrics,
        replica: str,
        options: ServiceOptions,
        *,
        folder: Path | None,
        node_address: str,
    ) -> None:
        self._server, self._thread = _listen(metrics.registry, options)
        self.address = f"{reachable(options.metrics_host, node_address)}:{self._server.server_port}"
        self._file = (
            None
            if folder is None
            else announce(folder, f"replica-{replica}", self.address, {"replica": replica})
        )

    def close(self) -> None:
        """Stop the exporter and withdraw the file."""
        withdraw(self._file)
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def _listen(registry: CollectorRegistry, options: ServiceOptions):  # type: ignore[no-untyped-def]
    first, last = options.metrics_ports
    for port in [*range(first, last + 1), 0]:
        with contextlib.suppress(OSError):
            return start_http_server(port, addr=options.metrics_host, registry=registry)
    raise OSError(f"no port is free for the metrics exporter on {options.metrics_host}")
