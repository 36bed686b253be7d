"""A small stream root, and a plain-Python twin of it that knows by naive loops what a reader must see."""

from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_odml.learn.drift import AffineMap
from stream_odml.store.artifacts import BACKWARD, FORWARD, STUDENT
from stream_odml.store.store import Store
from stream_odml.store.tables import Form, gallery_rows
from stream_odml.store.writer import IngestBatch, Writer

DIM = 6
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Shard:
    """What a source hands over."""

    shard_id: str
    name: str = "shard"
    uri: str = "/inbox/shard.parquet"
    format: str = "parquet"
    size_bytes: int = 1

    def to_dict(self) -> dict[str, Any]:
        """As the ledger keeps it."""
        return asdict(self)


@dataclass(frozen=True)
class Item:
    """One row of a shard."""

    item_id: str
    class_name: str


def make_rows(shard_id: str, items: list[Item], vectors: Floats, version: str, **more: Any) -> pa.Table:
    """Gallery rows of a shard, in order."""
    return gallery_rows(
        item_ids=[item.item_id for item in items],
        class_names=[item.class_name for item in items],
        shard_ids=shard_id,
        rows=range(len(items)),
        vectors=vectors.astype(np.float32),
        version=version,
        **more,
    )


def new_root(
    uri: str, dim: int = DIM, holder: str = "test", form: Form = "embedding", **claim: Any
) -> Writer:
    """A claimed root with an initial model."""
    writer = Writer.claim(Store.create(uri, dim, form=form, keep_gallery=False), holder, **claim)
    writer.commit_root({STUDENT: b"initial"})
    return writer


def ingest(writer: Writer, shard_id: str, items: list[Item], seed: int = 0, **more: Any) -> Floats:
    """Land and index one shard with random raw vectors; they are given back."""
    vectors = np.random.default_rng(seed).normal(size=(len(items), writer.store.dim))
    writer.record_landed([Shard(shard_id)])
    rows = make_rows(shard_id, items, vectors, writer.tree.head, codes=writer.store.row_codes, **more)
    writer.commit_ingest(IngestBatch([shard_id], rows))
    return vectors


def drift_pair(seed: int, dim: int = DIM) -> tuple[AffineMap, AffineMap]:
    """A random well-conditioned affine map and its exact inverse."""
    rng = np.random.default_rng(seed)
    matrix: Floats = np.eye(dim) + 0.2 * rng.normal(size=(dim, dim))
    shift: Floats = 0.1 * rng.normal(size=dim)
    inverse: Floats = np.asarray(np.linalg.inv(matrix), dtype=np.float64)
    return AffineMap(matrix, shift), AffineMap(inverse, -inverse @ shift)


def commit_stage(writer: Writer, task: str, rows: pa.Table | None, seed: int, **more: Any) -> str:
    """Learn ``task`` from the head; ``rows`` are made by the caller for the version id of the attempt."""
    version_id = writer.begin_attempt(task)
    forward, backward = drift_pair(seed, writer.store.dim)
    data = {STUDENT: f"student {seed}".encode(), FORWARD: forward.to_bytes(), BACKWARD: backward.to_bytes()}
    refs = {name: writer.put_artifact(version_id, name, part) for name, part in data.items()}
    rows = rows if rows is not None else writer.store.gallery_rows().slice(0, 0)
    writer.commit_stage(version_id, writer.tree.head, task, refs, rows, **more)
    return version_id


@dataclass
class Twin:
    """The same operations, remembered as plain lists; :meth:`expected` recomputes everything each time."""

    shards: dict[str, tuple[int, int, list[Item]]] = field(default_factory=dict)
    """id -> (landing order, indexing order, its items)"""
    rows: list[tuple[str, int, str, Floats]] = field(default_factory=list)
    """(shard, place in it, version, raw vector), in commit order"""
    tombstones: list[tuple[int, str, str]] = field(default_factory=list)
    parents: dict[str, str | None] = field(default_factory=dict)
    drifts: dict[str, tuple[AffineMap, AffineMap]] = field(default_factory=dict)
    clock: int = 0

    def tick(self) -> int:
        self.clock += 1
        return self.clock

    def lineage(self, version: str) -> list[str]:
        line = [version]
        while (parent := self.parents[line[0]]) is not None:
            line.insert(0, parent)
        return line

    def walk(self, start: str, end: str) -> list[str]:
        up, down = self.lineage(start), self.lineage(end)
        common = max((v for v in up if v in down), key=up.index)
        return up[up.index(common) :][::-1] + down[down.index(common) + 1 :]

    def moved(self, vector: Floats, start: str, end: str) -> Floats:
        path = self.walk(start, end)
        for a, b in pairwise(path):
            drift = self.drifts[b][0] if self.parents[b] == a else self.drifts[a][1]
            vector = drift.A @ vector + drift.b
        return vector

    def dead(self, shard_id: str, item: Item) -> bool:
        landed = self.shards[shard_id][0]
        names = {"class": item.class_name, "item": item.item_id}
        return any(at > landed and names[kind] == name for at, kind, name in self.tombstones)

    def expected(self, head: str) -> dict[str, tuple[str, str, Floats]]:
        """item id -> (class, shard, unit vector at ``head``)."""
        owner: dict[str, tuple[str, int]] = {}
        for shard_id, (_, _, items) in sorted(self.shards.items(), key=lambda entry: entry[1][1]):
            for place, item in enumerate(items):
                owner[item.item_id] = (shard_id, place)
        line, seen = self.lineage(head), {}
        for item_id, (shard_id, place) in owner.items():
            item = self.shards[shard_id][2][place]
            if self.dead(shard_id, item):
                continue
            made = [(version, raw) for s, p, version, raw in self.rows if (s, p) == (shard_id, place)]
            # Python's sort is stable: of the equally near, the first committed stays first.
            made.sort(key=lambda row: (len(self.walk(row[0], head)), row[0] not in line))
            vector = self.moved(made[0][1].astype(np.float32).astype(float), made[0][0], head)
            seen[item_id] = (item.class_name, shard_id, vector / np.linalg.norm(vector))
        return seen
