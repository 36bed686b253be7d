"""A stream root with a real writer and tiny shards, for tests that need no Ray and no model."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from stream_odml.ingest.shard import ShardManifest, ShardRef
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import IdentityMap
from stream_odml.store.artifacts import BACKWARD, BANK, FORWARD, STUDENT, ArtifactRef
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows
from stream_odml.store.writer import IngestBatch, Writer

DIM = 4


def claim(root: Path | str, options: dict[str, str] | None = None) -> Writer:
    """Make the root, with an initial version, and become its writer."""
    writer = Writer.claim(Store.create(str(root), DIM, options, keep_gallery=False), "test")
    writer.commit_root({STUDENT: b"the initial model"})
    return writer


def shard(name: str, manifest: ShardManifest | None = None) -> ShardRef:
    """A reference to a shard that need not exist."""
    return ShardRef(
        f"{name}-{'0' * 16}", name, f"/inbox/{name}", "parquet", 100, time.time_ns(), name, manifest
    )


def index(writer: Writer, ref: ShardRef, classes: Mapping[str, int], held_out: int = 0) -> None:
    """Commit ``ref`` as an indexer would: so many images of each class, the first ``held_out`` of each held out."""
    names = [name for name, count in classes.items() for _ in range(count)]
    held = [i < held_out for count in classes.values() for i in range(count)]
    rows = gallery_rows(
        item_ids=[f"{ref.shard_id}/{i}" for i in range(len(names))],
        class_names=names,
        shard_ids=ref.shard_id,
        rows=range(len(names)),
        vectors=np.random.default_rng(0).normal(size=(len(names), DIM)).astype(np.float32),
        version=writer.store.tree.head,
        held_out=held,
    )
    trainable = {name: count - min(held_out, count) for name, count in classes.items()}
    counts = {ref.shard_id: {"trainable": trainable, "reasons": {}}}
    writer.commit_ingest(IngestBatch([ref.shard_id], rows, counts=counts))


def artifacts(writer: Writer, version: str) -> dict[str, ArtifactRef]:
    """The files of a version that changed nothing."""
    contents = {
        STUDENT: b"a model",
        BANK: ClassBank.empty(DIM).to_bytes(),
        FORWARD: IdentityMap().to_bytes(),
        BACKWARD: IdentityMap().to_bytes(),
    }
    return {name: writer.put_artifact(version, name, data) for name, data in contents.items()}
