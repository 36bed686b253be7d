"""A stream of vectors without Ray: what its driver, indexer and solver do, one step after the other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import embedder_from_bytes
from stream_odml.pipeline.fast_stage import fast_stage
from stream_odml.pipeline.first_version import claim_root, root_there
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.pipeline.stages import Stages
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.sequence import sequence_of
from stream_odml.store.store import Store

D = 24
Floats = NDArray[np.float32]


def vectors_of(names: Sequence[str], seed: int = 0, dim: int = D) -> Floats:
    """A vector of each name: its class's own mean, and directions in which classes do not differ at all."""
    random = np.random.default_rng(seed)
    means = {name: np.random.default_rng([7, *name.encode()]).random(dim) for name in sorted(set(names))}
    noise = random.normal(0, 1, (len(names), dim)) * np.where(np.arange(dim) < dim // 3, 1.5, 0.1)
    return (np.stack([means[name] for name in names]) * 3 + noise).astype(np.float32)


def vector_config(root: Path | str, **more: Any) -> StreamConfig:
    """A stream of vectors whose tasks a manifest closes."""
    return parse_config(
        {
            "root": str(root),
            "model": {"backbone": "none", "input_dim": D, "head": "discriminant", "dim": 12, "lift": 16},
            "boundary": {"new_classes": None, "images": None, "age_s": None},
            **more,
        }
    )


class VectorStream:
    """The writer's side of a stream of vectors under `root`."""

    def __init__(self, root: Path, **more: Any) -> None:
        self.config = vector_config(root, **more)
        there = root_there(self.config)
        _, self.writer = claim_root(self.config, there, "test", takeover=True)
        self.stages = Stages(self.writer, self.config.boundary, 1, self.config.learns_trunk)
        self._seen: set[str] = set()
        self.inboxes = [root / "inbox", root / "push"]
        for inbox in self.inboxes:
            inbox.mkdir(exist_ok=True)

    @property
    def sequence(self) -> int:
        return sequence_of(self.writer.ledger.seq, self.writer.tree.seq)

    def land(self, name: str, names: Sequence[str], seed: int = 0, task: bool = True) -> Floats:
        """Land vectors of these classes as one task, and index them; ids are `<name>/<number>`."""
        vectors = vectors_of(names, seed)
        items = [
            NewItem(class_name=one, item_id=f"{name}/{at}", vector=vectors[at])
            for at, one in enumerate(names)
        ]
        if task:
            complete_task(self.inboxes[0], name, [f"{name}.parquet"])
        land_items(self.inboxes[0], name, items)
        self.ingest()
        return vectors

    def ingest(self) -> list[str]:
        """Index all that lies in the inboxes, then close tasks; reasons of what was refused."""
        reasons: Counter[str] = Counter()
        for inbox in self.inboxes:
            for ref in DirectorySource(inbox).poll(self._seen):
                self._seen.add(ref.stamp)
                self.writer.record_landed([ref])
                store = self.writer.store
                head = store.tree.head
                model = embedder_from_bytes(store.artifact(head, STUDENT))
                options = IndexOptions(
                    1 << 20, False, self.config.evaluation.held_out, codes="int8", store=store
                )
                found = index_shard(ref, model, head, store.files, options)
                self.writer.commit_ingest(found)
                reasons.update(found.quarantine["reason"].to_pylist())
        self.stages.close_tasks()
        return sorted(reasons.elements())

    def learn(self) -> str:
        """Learn the next closed task; the new version."""
        order = self.stages.solve_next()
        assert order is not None, "no task for a fast stage"
        result = fast_stage(Store.open(self.config.root), order, self.config)
        assert result.refusal is None, result.refusal
        return self.stages.commit(result)

    def close(self) -> None:
        self.writer.release()
