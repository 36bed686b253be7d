"""A sample is drawn from what lives: what was erased, replaced or is not committed takes no place in it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stream_odml.config.stream import EvaluationConfig
from stream_odml.pipeline import estimating
from stream_odml.pipeline.held_out_rows import choose
from stream_odml.pipeline.sampling import drawn, rows_of_classes
from stream_odml.store.tables import gallery_rows
from stream_odml.store.writer import IngestBatch, Writer
from tests.cluster.small_root import DIM, artifacts, claim, index, shard

PER_CLASS = 3


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = claim(tmp_path / "root")
    yield writer
    writer.release()


def land(writer: Writer, name: str, classes: dict[str, int]) -> str:
    """Land and index a shard, all of it held out; its id."""
    ref = shard(name)
    writer.record_landed([ref])
    index(writer, ref, classes, held_out=max(classes.values()))
    return ref.shard_id


def learn(writer: Writer, name: str, classes: dict[str, int]) -> str:
    """Land and learn a shard; the id of its task."""
    shard_id = land(writer, name, classes)
    task = writer.ledger.next_task_id
    writer.close_task(task, [shard_id], "test")
    version = writer.begin_attempt(task)
    empty = writer.store.gallery_schema.empty_table()
    writer.commit_stage(version, writer.tree.head, task, artifacts(writer, version), empty)
    return task


def come_again(writer: Writer, items: Sequence[str], class_name: str) -> None:
    """Land items once more, under another class."""
    ref = shard("again")
    writer.record_landed([ref])
    rows = gallery_rows(
        item_ids=items, class_names=[class_name] * len(items), shard_ids=ref.shard_id, rows=range(len(items)),
        vectors=np.ones((len(items), DIM), np.float32), version=writer.tree.head, held_out=[True] * len(items),
    )  # fmt: skip
    writer.commit_ingest(IngestBatch([ref.shard_id], rows))


def sampled(writer: Writer, shard_id: str, seed: int = 0) -> pa.Table:
    return rows_of_classes(writer.store, writer.tree.head, [shard_id], pc.field("held_out"), PER_CLASS, seed)


def test_erased_items_leave_their_places_to_the_others(writer: Writer) -> None:
    shard_id = land(writer, "a", {"cat": 40, "dog": 2})
    ids = [f"{shard_id}/{i}" for i in range(40)]
    for item in drawn(ids, 0)[:PER_CLASS]:
        writer.forget("item", item)
    rows = sampled(writer, shard_id)
    assert Counter(rows["class_name"].to_pylist()) == {"cat": PER_CLASS, "dog": 2}
    cats = [item for item, name in zip(rows["item_id"].to_pylist(), rows["class_name"].to_pylist(), strict=True)
            if name == "cat"]  # fmt: skip
    assert set(cats) == set(drawn(ids, 0)[PER_CLASS : 2 * PER_CLASS])


@pytest.mark.parametrize("left", [0, 1, PER_CLASS, 7])
def test_replaced_items_leave_their_places_to_the_others(writer: Writer, left: int) -> None:
    """Those that are drawn first are another class's by now, however many they are."""
    shard_id = land(writer, "a", {"cat": 60, "dog": 2})
    ids = [f"{shard_id}/{i}" for i in range(60)]
    come_again(writer, drawn(ids, 0)[: 60 - left], "owl")
    rows = sampled(writer, shard_id)
    of_class = Counter(rows["class_name"].to_pylist())
    assert (of_class["cat"], of_class["dog"], of_class["owl"]) == (min(left, PER_CLASS), 2, 0)


def test_forgotten_classes_take_no_room_from_those_that_are_measured(writer: Writer) -> None:
    """Room for a hundred images of two a class: of sixty old classes forty are gone, and the others are measured."""
    old = {f"old {i:02d}": 2 for i in range(60)}
    learn(writer, "old", old)
    task = learn(writer, "new", {f"new {i:02d}": 2 for i in range(60)})
    evaluation = EvaluationConfig(held_out=0.5, max_per_class=2, max_images=100)
    for name in drawn(old, 0)[:40]:
        writer.forget("class", name)
    found = Counter(choose(writer.store, writer.tree.head, [task], evaluation, 0)["class_name"].to_pylist())
    assert {name for name in found if name.startswith("old")} == set(drawn(old, 0)[40:])
    assert sum(found.values()) == 100


@pytest.mark.parametrize("kind", ["shard", "item"])
def test_the_estimate_draws_from_shards_that_live(
    writer: Writer, monkeypatch: pytest.MonkeyPatch, kind: Literal["shard", "item"]
) -> None:
    monkeypatch.setattr(estimating, "SHARDS", 1)
    for name in ("a", "b", "c", "d"):
        learn(writer, name, {"cat": 2, "dog": 2})
    shards = sorted(writer.ledger.shards)
    kept = shards[np.random.default_rng(0).permutation(len(shards))[-1]]  # the last to be drawn
    for gone in set(shards) - {kept}:
        for name in [gone] if kind == "shard" else [f"{gone}/{i}" for i in range(4)]:
            writer.forget(kind, name)
    vectors, labels = estimating._stored(writer.store, writer.tree.head, seed=0)
    assert len(vectors) == 4
    assert Counter(labels.tolist()) == {0: 2, 1: 2}
