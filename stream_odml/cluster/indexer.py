"""An indexer, a process that stays warm: keeps the current model loaded and answers with rows, never with a commit."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from typing import Any

import ray
import torch

from stream_odml.cluster.actors import IndexedBatch, indexer_name
from stream_odml.cluster.runtime import INDEXING_NICENESS, NAMESPACE, lower_priority
from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.tables import start_decoder
from stream_odml.learn.embedder import Embedder
from stream_odml.models.loading import load_model
from stream_odml.observe.logs import about
from stream_odml.observe.observing import observe
from stream_odml.observe.tracing import span
from stream_odml.pipeline.hang_guard import hang_guard
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.pipeline.sources import read_options
from stream_odml.store.store import Store
from stream_odml.store.tables import IngestBatch

log = logging.getLogger(__name__)


def threads_of(omp: str) -> int:
    """Return with how many threads an indexer computes, by OMP_NUM_THREADS: the first number of a list, as OpenMP takes
    it ("4,2"), and one where there is none."""
    first = omp.split(",")[0].strip()
    return max(1, int(first)) if first.isdecimal() else 1


class Indexer:
    """Ray actor. Stateless but for the loaded model, so that it can be replaced at any time."""

    def __init__(self, config_json: str, number: int = 0) -> None:
        config = StreamConfig.model_validate_json(config_json)
        lower_priority(INDEXING_NICENESS)
        observe(config, f"indexer-{number}")
        torch.set_num_threads(threads_of(os.environ.get("OMP_NUM_THREADS", "")))
        start_decoder()
        self._config = config
        # Opened with the first shard: a root that is away must not end the actor.
        self._store: Store | None = None
        self._device = indexing_device(config.cluster.gpus_per_indexer)
        self._version = ""
        self._embedder: Embedder | None = None

    def index(self, refs: list[ShardRef], version: str) -> IndexedBatch:
        """Index `refs` with the model `version`, as many as make a batch."""
        if self._store is None:
            self._store = Store.open(self._config.root, self._config.storage_options, keep_gallery=False)
        embedder = self._model(self._store, version)
        ingest, store = self._config.ingest, self._store
        as_stored = IndexOptions(
            ingest.max_pixels, ingest.thumbnails, self._config.evaluation.held_out,
            device=self._device, codes=store.row_codes, store=store,
        )  # fmt: skip
        done: list[IngestBatch] = []
        retry: dict[str, str] = {}
        for ref in refs:
            if sum(len(shard.rows) for shard in done) >= ingest.batch_rows:
                break
            try:
                options = replace(as_stored, source_options=read_options(self._config, ref.uri))
                traced = span("shard.index", ref.shard_id, stage=version)
                with about(shard=ref.shard_id), traced, hang_guard(ingest.hang_s) as beat:
                    done.append(index_shard(ref, embedder, version, store.files, options, beat))
            except TransientReadError as error:
                retry[ref.shard_id] = str(error)
        return IndexedBatch(done, retry)

    def _model(self, store: Store, version: str) -> Embedder:
        if self._embedder is None or self._version != version:
            store.refresh()
            self._embedder = load_model(store, version, self._device)
            self._version = version
        return self._embedder


def indexing_device(gpus: float) -> torch.device:
    """Return the accelerator that Ray reserved for this process, the CPU where it reserved none. An indexer that finds
    no accelerator says so and goes on, slower: what lands is to be searchable all the same."""
    if not gpus:
        return torch.device("cpu")
    device = found_accelerator()
    if device is None:
        log.error(
            "cluster.gpus_per_indexer is %g, but torch %s finds no accelerator here: embedding on the CPU. Install a "
            "build of torch for the GPU, or set it to 0",
            gpus,
            torch.__version__,
        )
        return torch.device("cpu")
    return device


def found_accelerator() -> torch.device | None:
    """Return the accelerator that torch can use in this process, of those that Ray lets it see."""
    return torch.accelerator.current_accelerator(check_available=True)


def start_indexers(config: StreamConfig) -> list[Any]:
    """Start the indexer actors that `config` asks for, under names by which a restarted driver finds them."""
    cluster = config.cluster
    actor = ray.remote(
        num_cpus=cluster.cpus_per_indexer,
        num_gpus=cluster.gpus_per_indexer,
        label_selector=dict(cluster.indexer_labels) or None,
        max_restarts=-1,
        max_task_retries=0,  # the driver counts what a shard does to its reader
    )(Indexer)
    return [
        actor.options(name=indexer_name(i), namespace=NAMESPACE).remote(config.model_dump_json(), i)
        for i in range(cluster.indexers)
    ]
