"""Seam 33: measuring a stage costs the same however long the stream has run, and is shared by all ranks.

The held-out images are a sample: bounded in all and for each class, drawn by the seed, the same whatever files the
rows lie in. Each image is read and embedded by one rank, a batch of pixels at a time.
"""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import torch
from numpy.typing import NDArray
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.config.stream import EvaluationConfig, parse_config
from stream_odml.ingest.decode import decode_image
from stream_odml.learn.embedder import Embedder, build_embedder, embed
from stream_odml.learn.world import World
from stream_odml.pipeline import held_out, sampling
from stream_odml.pipeline.evaluating import change_error
from stream_odml.pipeline.first_version import _check_held_out
from stream_odml.pipeline.held_out import BATCH, embed_images, shared_held_out
from stream_odml.pipeline.held_out_rows import HeldOut, assemble, choose, keys_of, share
from stream_odml.pipeline.indexing import IndexOptions
from stream_odml.pipeline.messages import StageOrder
from stream_odml.pipeline.sampling import rows_of_classes
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.pictures import as_parquet
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows
from stream_odml.store.version_metrics import VersionMetrics
from stream_odml.store.writer import IngestBatch, Writer
from tests.cluster.small_root import DIM, artifacts, claim, index, shard
from tests.pipeline.exact_stream import ExactStream
from tests.service.tiny_stream import SPEC, TinyStream, picture

BOUND = EvaluationConfig(held_out=0.5, max_per_class=4, max_images=100)


def learn(writer: Writer, name: str, classes: int, each: int = 8, held: int = 6) -> str:
    """Land, index and learn a task of so many classes; its id."""
    ref = shard(name)
    writer.record_landed([ref])
    index(writer, ref, {f"{name} {i:03d}": each for i in range(classes)}, held_out=held)
    task = writer.ledger.next_task_id
    writer.close_task(task, [ref.shard_id], "test")
    version = writer.begin_attempt(task)
    writer.commit_stage(version, writer.tree.head, task, artifacts(writer, version), empty())
    return task


def empty() -> pa.Table:
    return gallery_rows(
        item_ids=[],
        class_names=[],
        shard_ids="",
        rows=[],
        vectors=np.empty((0, DIM), np.float32),
        version="none",
    )


def counts(rows: pa.Table) -> Counter[str]:
    return Counter(rows["class_name"].to_pylist())


@pytest.fixture
def long_root(tmp_path: Path) -> Writer:
    """Four tasks of 20 classes, the last of them at hand: 480 held-out images."""
    writer = claim(tmp_path / "root")
    for name in ("a", "b", "c", "d"):
        learn(writer, name, 20)
    return writer


def test_a_short_stream_is_measured_whole_a_long_one_by_a_sample(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    task = learn(writer, "a", 20)
    rows = choose(writer.store, writer.tree.head, [task], BOUND, 0)
    assert set(counts(rows).values()) == {4}  # of each class as many as are asked for
    assert len(counts(rows)) == 20
    for name in ("b", "c", "d", "e"):
        task = learn(writer, name, 20)
        rows = choose(writer.store, writer.tree.head, [task], BOUND, 0)
        assert len(rows) <= 100
        assert all(rows["held_out"].to_pylist())
    own = {c: n for c, n in counts(rows).items() if c.startswith("e ")}
    assert sum(own.values()) == 48  # half of the images for the task at hand: 12 classes of 4
    assert sum(counts(rows).values()) - 48 == 48
    writer.release()


def test_the_sample_depends_on_the_seed_and_not_on_the_files(long_root: Writer) -> None:
    store, head = long_root.store, long_root.tree.head
    before = choose(store, head, ["task-0004"], BOUND, 7)
    assert keys_of(choose(store, head, ["task-0004"], BOUND, 7)) == keys_of(before)
    assert keys_of(choose(store, head, ["task-0004"], BOUND, 8)) != keys_of(before)
    long_root.maintain(MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(0)))
    store.refresh()
    assert keys_of(choose(store, head, ["task-0004"], BOUND, 7)) == keys_of(before)
    long_root.release()


@pytest.mark.parametrize("at_once", [0, 1, 50, 1 << 16])
def test_the_sample_does_not_depend_on_how_much_is_drawn_from_at_once(
    long_root: Writer, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    whole = choose(long_root.store, long_root.tree.head, ["task-0004"], BOUND, 7)
    monkeypatch.setattr(sampling, "AT_ONCE", at_once)
    assert keys_of(choose(long_root.store, long_root.tree.head, ["task-0004"], BOUND, 7)) == keys_of(whole)
    long_root.release()


def test_classes_stay_in_the_sample_while_there_is_room(long_root: Writer) -> None:
    """Figures of two stages are of the same classes, so that forgetting is not a change of the sample."""
    head = long_root.tree.head
    at_b = set(counts(choose(long_root.store, head, ["task-0002"], BOUND, 0)))
    wide = BOUND.model_copy(update={"max_images": 200})
    assert at_b & {c for c in at_b if c.startswith("a ")} <= set(
        counts(choose(long_root.store, head, ["task-0002"], wide, 0))
    )
    long_root.release()


def test_an_item_that_came_again_counts_as_readers_see_it(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    learn(writer, "a", 3)
    store = writer.store
    first = rows_of_classes(store, writer.tree.head, list(store.ledger.shards), pc.field("held_out"), 2, 0)
    moved = first["item_id"][0].as_py()
    again = shard("again")
    writer.record_landed([again])
    rows = gallery_rows(
        item_ids=[moved], class_names=["another"], shard_ids=again.shard_id, rows=[0],
        vectors=np.ones((1, DIM), np.float32), version=writer.tree.head, held_out=[True],
    )  # fmt: skip
    writer.commit_ingest(IngestBatch([again.shard_id], rows))
    of_a = [s for s in store.ledger.shards if s.startswith("a-")]
    now = rows_of_classes(store, writer.tree.head, of_a, pc.field("held_out"), 2, 0)
    assert moved not in now["item_id"].to_pylist()  # it is another class's now, in a shard that is not learnt
    writer.release()


@pytest.mark.parametrize("ranks", [1, 2, 3, 7])
def test_ranks_share_the_images_and_find_the_same_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    stream = TinyStream(tmp_path)
    keys = []
    for name, images in (("s", 5), ("t", 1), ("u", 7)):
        ids = [f"{name}/{i}" for i in range(images)]
        table = pa.table(
            {
                "item_id": ids,
                "class_name": ["x"] * images,
                "image": [picture(sum(map(ord, i)) % 97) for i in ids],
            }
        )
        stream.writer.store.files.write(f"holdout/{name}.parquet", as_parquet(table))
        keys += [(name, item) for item in ids]
    keys.insert(3, ("s", "forgotten meanwhile"))
    keys.append(("gone", "gone/0"))
    models = (build_embedder(SPEC, 0), build_embedder(SPEC, 1))
    monkeypatch.setattr(held_out, "BATCH", 3)
    parts = [
        embed_images(stream.writer.store, keys[share(len(keys), rank, ranks)], models, 16, 1 << 20, "cpu")
        for rank in range(ranks)
    ]
    whole = embed_images(stream.writer.store, keys, models, 16, 1 << 20, "cpu")
    stream.close()
    there = np.concatenate([part[0] for part in parts])
    np.testing.assert_array_equal(
        there, [key[1].split("/")[0] == key[0] and key[0] != "gone" for key in keys]
    )
    for i in range(2):
        together = np.concatenate([part[1][i] for part in parts])
        np.testing.assert_allclose(together, whole[1][i], atol=1e-5)
    sizes = [len(part[0]) for part in parts]
    assert sum(sizes) == len(keys)
    assert max(sizes) - min(sizes) <= 1


def test_pixels_are_in_memory_a_batch_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = TinyStream(tmp_path)
    images = 2 * BATCH + 3
    ids = [f"s/{i}" for i in range(images)]
    table = pa.table({"item_id": ids, "class_name": ["x"] * images, "image": [picture(0)] * images})
    stream.writer.store.files.write("holdout/s.parquet", as_parquet(table))
    sizes: list[int] = []

    def counted(model: Embedder, pixels: NDArray[np.uint8], device: str) -> NDArray[np.float32]:
        sizes.append(len(pixels))
        return np.zeros((len(pixels), SPEC.dim), np.float32)

    monkeypatch.setattr(held_out, "embed", counted)
    embed_images(stream.writer.store, [("s", i) for i in ids], [build_embedder(SPEC, 0)], 16, 1 << 20, "cpu")
    stream.close()
    assert sizes == [BATCH, BATCH, 3]


def test_what_was_chosen_and_cannot_be_read_is_left_out(long_root: Writer) -> None:
    rows = choose(long_root.store, long_root.tree.head, ["task-0004"], BOUND, 0)
    vectors = np.ones((1, DIM), np.float32)
    there = np.zeros(len(rows), bool)
    there[5] = True
    shards = long_root.ledger.shards_of(["task-0004"])
    assert assemble(long_root.store, long_root.tree.head, shards, rows, there, vectors, vectors) is None
    there[9] = True
    two = np.ones((2, DIM), np.float32)
    held = assemble(long_root.store, long_root.tree.head, shards, rows, there, two, two)
    assert held is not None
    assert held.classes == [rows["class_name"][i].as_py() for i in (5, 9)]
    long_root.release()


def test_the_error_of_a_change_is_that_of_drawing_other_classes() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(np.arange(40), 5)
    change = (random.normal(size=40)[labels] * 0.3 + random.normal(size=200) * 0.1).astype(np.float32)
    means = [
        change[np.concatenate([np.flatnonzero(labels == c) for c in random.integers(0, 40, 40)])].mean()
        for _ in range(2000)
    ]
    assert change_error(change, labels) == pytest.approx(np.std(means), rel=0.1)
    assert change_error(change[:5], labels[:5]) is None


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_a_stage_measures_the_same_on_any_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ranks: int
) -> None:
    options = IndexOptions(max_pixels=1 << 20, thumbnails=False, held_out=0.5)
    monkeypatch.setattr("tests.service.tiny_stream.OPTIONS", options)
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", "dog", "fox"], per_class=6)
    stream.stage()
    stream.land("b", ["elm", "oak"], per_class=6)
    (waiting,) = stream.writer.ledger.indexed.values()
    stream.writer.close_task("task-0002", [waiting.shard_id], "test")
    order = StageOrder("task-0002", "v0002-x", stream.head, 2, (), 0.0)
    config = parse_config({"root": stream.root, "model": asdict(SPEC), "evaluation": {"held_out": 0.5}})
    meeting = Meeting(ranks)
    student, *copies = [build_embedder(SPEC, 3) for _ in range(ranks + 1)]

    def measure(rank: int) -> HeldOut | None:
        store, world = Store.open(stream.root), World(rank, ranks, torch.device("cpu"))
        gather = partial(meeting.exchange, rank)
        return shared_held_out(store, order, config, copies[rank], world, gather)

    with ThreadPoolExecutor(ranks) as pool:
        found = list(pool.map(measure, range(ranks)))
    assert all(held is None for held in found[1:])
    held = found[0]
    assert held is not None
    rows = stream.writer.store.gallery_rows(vectors=False).filter(pc.field("held_out"))
    assert len(held.classes) == len(set(rows["item_id"].to_pylist())) > 4
    assert set(held.classes) <= {"cat", "dog", "fox", "elm", "oak"}
    keys = keys_of(choose(stream.writer.store, stream.head, ["task-0002"], config.evaluation, 0))
    images = np.stack(
        [decode_image(stream.images[item], SPEC.image_size, DEFAULT_MAX_PIXELS) for _, item in keys]
    )
    np.testing.assert_allclose(held.fresh, embed(student, images), atol=1e-5)
    np.testing.assert_allclose(held.parent, embed(stream.model, images), atol=1e-5)
    stream.close()


class Meeting:
    """Where threads that stand for ranks exchange values, as `all_gather_object` does."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=240)
        self._values: list[Any] = [None] * ranks

    def exchange(self, rank: int, value: Any) -> list[Any]:
        self._values[rank] = value
        self._barrier.wait()
        values = list(self._values)
        self._barrier.wait()
        return values


def test_another_share_held_out_is_reported_and_its_figures_stand_apart(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the same tasks under one trunk: the third version is measured on other images than those before it."""
    stream = ExactStream(tmp_path)
    names = [f"class {i}" for i in range(18)]
    for number in range(3):
        classes = dict.fromkeys(names[6 * number : 6 * number + 6], 12)
        stream.land(f"shard-{number}", classes, held_out=4)
        stream.learn()
    tree = stream.writer.store.tree
    same = [VersionMetrics.read(tree.get(name).metrics) for name in tree.lineage(tree.head)[1:]]
    assert len({one.held_out_set for one in same}) == 1
    assert same[-1].forgetting is not None
    shell, root = CliRunner(), str(tmp_path)
    for command in ("status", "versions"):
        assert "do not compare" not in shell.invoke(app, [command, root]).output
    last = tree.head
    config = stream.config = stream.config.model_copy(
        update={"evaluation": EvaluationConfig(held_out=0.5, max_per_class=3)}
    )
    with caplog.at_level("WARNING"):
        _check_held_out(config, stream.writer.store)
    assert f"{config.held_out_set}, as `evaluation` or `seed` is another" in caplog.text
    stream.land("shard-3", dict.fromkeys(["class a", "class b"], 12), held_out=6)
    version = stream.learn()
    other = VersionMetrics.read(version.metrics)
    assert (other.held_out_set, other.forgetting) == (config.held_out_set, None)
    assert other.held_out_set is not None
    assert other.held_out_set.startswith("0.5-")
    assert other.parent_recall_at_1["old"] <= 1.0  # the gate compares both versions on the new one's images
    for asked in (["status", root], ["versions", root], ["versions", root, "--diff", last, "head"]):
        said = " ".join(shell.invoke(app, asked).output.split())
        assert "do not compare" in said, asked
        assert str(same[0].held_out_set) in said
        assert other.held_out_set in said
    stream.land("shard-4", {"class c": 12}, held_out=6)
    assert VersionMetrics.read(stream.learn().metrics).forgetting is not None
