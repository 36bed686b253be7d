"""What a stream asks of its machine or cluster before it starts: CPUs, GPUs, and batches that divide over workers."""

from __future__ import annotations

import os

from stream_odml.cluster.placement import Role
from stream_odml.config.stream import ConfigError, StreamConfig


def check_batch(config: StreamConfig) -> None:
    """Raise ConfigError unless a batch divides over every number of workers that may train."""
    if config.model.takes_vectors:
        return
    least = config.cluster.min_workers or config.cluster.workers
    for workers in range(least, config.cluster.workers + 1):
        if config.learning.classes_per_batch % workers:
            raise ConfigError(
                f"learning.classes_per_batch {config.learning.classes_per_batch} does not divide over {workers} "
                "workers; make it a multiple of every size from cluster.min_workers to cluster.workers"
            )


def joins_cluster(config: StreamConfig) -> bool:
    """Return whether the stream joins a running Ray cluster, and starts none of its own."""
    return config.cluster.address is not None or bool(os.environ.get("RAY_ADDRESS"))


def roles(config: StreamConfig, workers: int | None = None) -> list[Role]:
    """Return what runs at the same time, with ``workers`` of training, by default all: one read task at least must fit
    beside the rest."""
    c, s, trains = config.cluster, config.service, not config.model.takes_vectors
    return [
        Role("training", "cluster.worker_labels", (workers or c.workers) if trains else 0, c.cpus_per_worker,
             c.gpus_per_worker, c.worker_labels),
        Role("indexers", "cluster.indexer_labels", c.indexers, c.cpus_per_indexer, c.gpus_per_indexer,
             c.indexer_labels),
        Role("serving", "service.labels", s.replicas if c.serve else 0, s.num_cpus, 0.0, s.labels),
        Role("reading", "cluster.cpus_per_read", int(trains), c.cpus_per_read),
    ]  # fmt: skip
