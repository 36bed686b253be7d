"""Stream roots of any size without training: items of clustered random vectors, and stages that turn the space.

A stage here is a random rotation, whose drift maps are exact. So at any version the nearest neighbour of an item's
first vector is that item with cosine 1, and a model of one version against a gallery of another would not find it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.drift import AffineMap
from stream_odml.learn.embedder import build_embedder, embedder_to_bytes
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.store.artifacts import BACKWARD, FORWARD, STUDENT
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows
from stream_odml.store.writer import IngestBatch, Writer

Floats = NDArray[np.float32]
BATCH = 100_000
PER_CLASS = 100


@dataclass(frozen=True)
class Landed:
    """A shard as a source hands it over."""

    shard_id: str
    name: str = "made"
    uri: str = "made"
    format: str = "parquet"
    size_bytes: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return asdict(self)


class MadeRoot:
    """The writer of a root at ``uri`` with model ``conv4`` of dimension ``dim``. Close it."""

    def __init__(self, uri: str, dim: int, seed: int = 0) -> None:
        self.uri, self.dim = uri, dim
        self._rng = np.random.default_rng(seed)
        self._model = embedder_to_bytes(build_embedder(EmbedderSpec("conv4", dim=dim, image_size=28), seed))
        Store.create(uri, dim)
        self.writer = Writer.claim(uri, "benchmark")
        self.first = self.writer.commit_root({STUDENT: self._model})
        self._shards = 0

    @property
    def head(self) -> str:
        """The served version."""
        return self.writer.tree.head

    def vectors(self, count: int) -> Floats:
        """Clustered unit vectors [count, dim], PER_CLASS to a cluster."""
        centres = self._rng.standard_normal((-(-count // PER_CLASS), self.dim), dtype=np.float32)
        made = np.repeat(centres, PER_CLASS, axis=0)[:count]
        made += 0.7 * self._rng.standard_normal((count, self.dim), dtype=np.float32)
        made /= np.linalg.norm(made, axis=1, keepdims=True)
        return made

    def ingest(self, vectors: Floats) -> list[str]:
        """Land and index shards of the head's raw ``vectors`` [n, d]; the item ids."""
        ids: list[str] = []
        for start in range(0, len(vectors), BATCH):
            part = vectors[start : start + BATCH]
            shard = f"made-{self._shards:05d}-{0:016x}"
            names = [f"{shard}/{i}" for i in range(len(part))]
            self._shards += 1
            self.writer.record_landed([Landed(shard)])
            rows = gallery_rows(
                item_ids=names,
                class_names=[f"class {(start + i) // PER_CLASS}" for i in range(len(part))],
                shard_ids=shard,
                rows=range(len(part)),
                vectors=part,
                version=self.head,
            )
            self.writer.commit_ingest(IngestBatch([shard], rows))
            ids += names
        return ids

    def stage(self) -> str:
        """Commit a version whose space is turned; no item is embedded anew."""
        open_task, parent = self.writer.ledger.open_task, self.head
        shards: Sequence[str] = [shard.shard_id for shard in open_task.shards]
        if not shards:
            self.ingest(self.vectors(1))
            return self.stage()
        self.writer.close_task(open_task.task_id, shards, "benchmark")
        version = self.writer.begin_attempt(open_task.task_id)
        turn = np.linalg.qr(self._rng.normal(size=(self.dim, self.dim)))[0]
        zero = np.zeros(self.dim)
        contents = {
            STUDENT: self._model,
            FORWARD: AffineMap(turn, zero).to_bytes(),
            BACKWARD: AffineMap(turn.T.copy(), zero).to_bytes(),
        }
        refs = {name: self.writer.put_artifact(version, name, data) for name, data in contents.items()}
        self.writer.commit_stage(version, parent, open_task.task_id, refs, self._no_rows(), {})
        return version

    def _no_rows(self) -> Any:
        return gallery_rows(
            item_ids=[],
            class_names=[],
            shard_ids=[],
            rows=[],
            vectors=np.empty((0, self.dim), np.float32),
            version=self.head,
        )

    def close(self) -> None:
        """Release the root."""
        self.writer.release()


def request_body(vector: Floats, k: int, version: str | None = None) -> bytes:
    """JSON of one vector search, as a client sends it."""
    values = [round(float(x), 5) for x in vector]
    body: dict[str, Any] = {"vector": values, "k": k}
    return json.dumps(body if version is None else {**body, "version": version}).encode()
