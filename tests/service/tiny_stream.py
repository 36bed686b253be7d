"""A small real stream root, written as the driver writes it: shards landed, indexed, learnt in "stages".

A stage here turns the embedding space by a random rotation, with the exact maps beside it. So whatever the
number of stages, an image's own item must be its nearest neighbour with cosine 1; a model of one version
against a gallery of another would not find it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stream_odml.config.service import DEFAULT_MAX_PIXELS as LIMIT
from stream_odml.ingest.decode import decode_image, encode_image
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.drift import AffineMap
from stream_odml.learn.embedder import (
    Embedder,
    build_embedder,
    embed,
    embedder_from_bytes,
    embedder_to_bytes,
)
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.store.artifacts import BACKWARD, FORWARD, STUDENT
from stream_odml.store.sequence import sequence_of
from stream_odml.store.store import Store
from stream_odml.store.tables import Form, gallery_rows
from stream_odml.store.writer import Writer

SPEC = EmbedderSpec("conv4", dim=16, image_size=16)
OPTIONS = IndexOptions(max_pixels=1 << 20, thumbnails=True, held_out=0.0)


def picture(seed: int, size: int = 16) -> bytes:
    """A PNG whose blobs of colour only this seed has."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(4, 4, 3), dtype=np.uint8)
    return encode_image(np.kron(coarse, np.ones((size // 4, size // 4, 1), np.uint8)), "PNG")


class TinyStream:
    """The writer's side of a stream root under ``folder``."""

    form: Form = "embedding"

    def __init__(self, folder: Path) -> None:
        self.root, self.inbox = str(folder / "root"), folder / "root" / "push"
        store = Store.create(self.root, SPEC.dim, form=self.form, keep_gallery=False)
        self.writer = Writer.claim(store, "test")
        self.model = build_embedder(SPEC, 0)
        self.writer.commit_root({STUDENT: embedder_to_bytes(self.model)}, {"recall_at_1/union/served": 0.5})
        self.model.eval()
        self.images: dict[str, bytes] = {}
        self._source = DirectorySource(self.inbox)
        self._seen: set[str] = set()
        self._rng = np.random.default_rng(0)

    @property
    def head(self) -> str:
        return self.writer.tree.head

    @property
    def sequence(self) -> int:
        """What a replica's sequence is once it has seen everything."""
        return sequence_of(self.writer.ledger.seq, self.writer.tree.seq)

    def land(self, name: str, classes: Sequence[str], per_class: int = 2) -> list[str]:
        """Land and index a shard; the ids of its items."""
        items = []
        for number, class_name in enumerate([c for c in classes for _ in range(per_class)]):
            item_id, image = f"{name}/{number}", picture(len(self.images))
            self.images[item_id] = image
            items.append(NewItem(image, class_name, item_id, {"side": "left" if number % 2 else "right"}))
        land_items(self.inbox, name, items)
        self.ingest()
        return [item.item_id for item in items if item.item_id]

    def ingest(self) -> list[str]:
        """Index all that lies in the inbox; ids of the new shards."""
        refs = self._source.poll(self._seen)
        for ref in refs:
            self._seen.add(ref.stamp)
            self.writer.record_landed([ref])
            found = index_shard(ref, self.model, self.head, self.writer.store.files, OPTIONS)
            self.writer.commit_ingest(found)
        return [ref.shard_id for ref in refs]

    def stage(self) -> str:
        """Close the open task and commit a version that turns the space; its id."""
        open_task, parent = self.writer.ledger.open_task, self.head
        shards = [shard.shard_id for shard in open_task.shards]
        self.writer.close_task(open_task.task_id, shards, "test")
        version = self.writer.begin_attempt(open_task.task_id)
        turn = np.linalg.qr(self._rng.normal(size=(SPEC.dim, SPEC.dim)))[0]
        self.model = turned(self.model, turn)
        zero = np.zeros(SPEC.dim)
        artifacts = {
            name: self.writer.put_artifact(version, name, data)
            for name, data in {
                STUDENT: embedder_to_bytes(self.model),
                FORWARD: AffineMap(turn, zero).to_bytes(),
                BACKWARD: AffineMap(turn.T, zero).to_bytes(),
            }.items()
        }
        metrics = {"recall_at_1/union/served": 0.9, "forgetting": 0.01}
        self.writer.commit_stage(
            version, parent, open_task.task_id, artifacts, self._anew(shards, version), metrics
        )
        return version

    def _anew(self, shards: Sequence[str], version: str):  # type: ignore[no-untyped-def]
        meta = self.writer.store.gallery_rows(vectors=False).to_pylist()
        mine = {row["item_id"]: row for row in meta if row["shard_id"] in shards}
        return gallery_rows(
            item_ids=list(mine),
            class_names=[row["class_name"] for row in mine.values()],
            shard_ids=[row["shard_id"] for row in mine.values()],
            rows=[row["row"] for row in mine.values()],
            vectors=self.vectors(list(mine)),
            version=version,
            attributes=[row["attributes"] for row in mine.values()],
            times=[row["time"] for row in mine.values()],
        )

    def vectors(self, item_ids: Sequence[str]) -> NDArray[np.float32]:
        """Raw vectors [n, d] of items under the newest model."""
        return embed(
            self.model,
            np.stack([decode_image(self.images[item], SPEC.image_size, LIMIT) for item in item_ids]),
        )

    def back_to(self, version: str) -> None:
        """Move the head."""
        self.writer.move_head(version, "test")
        self.model = embedder_from_bytes(self.writer.store.artifact(version, STUDENT))

    def close(self) -> None:
        self.writer.release()


def turned(model: Embedder, turn: NDArray[np.float64]) -> Embedder:
    """A copy of ``model`` whose embeddings are multiplied by ``turn`` [d, d]."""
    copy = embedder_from_bytes(embedder_to_bytes(model))
    head = copy.head
    assert isinstance(head, torch.nn.Linear)
    with torch.no_grad():
        matrix = torch.from_numpy(turn).float()
        head.weight.copy_(matrix @ head.weight)
        head.bias.copy_(matrix @ head.bias)
    return copy
