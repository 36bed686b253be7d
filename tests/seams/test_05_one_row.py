"""Seam 05: one pixel limit holds everywhere, and no single row costs its task: what cannot be decoded when the task is
learnt is left out of it, with a reason in quarantine."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from pydantic import ValidationError

from stream_odml.cluster.reading import RayReaders
from stream_odml.cluster.runtime import ray_session
from stream_odml.config.service import ServiceOptions
from stream_odml.config.stream import StreamConfig, example_yaml, parse_config
from stream_odml.ingest import decode, rows
from stream_odml.ingest.cache import CacheMember, PixelCache
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.reasons import BadImage, Reason
from stream_odml.ingest.rows import decode_rows
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import build_embedder, embedder_from_bytes, embedder_to_bytes
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.learn.world import World
from stream_odml.pipeline import task_cache
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.pipeline.messages import StageOrder
from stream_odml.pipeline.sources import inbox_path
from stream_odml.pipeline.stage_run import StageFailed, StageRun
from stream_odml.pipeline.stages import Stages
from stream_odml.pipeline.task_cache import Readers, fill_cache
from stream_odml.service.decoding import Decoding
from stream_odml.service.push import PushInbox
from stream_odml.storage.files import open_files
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.cluster.poisoned import poison
from tests.ingest.helpers import land_folder
from tests.ingest.pictures import picture

SIZE, LIMIT = 20, 10_000
IMAGES = [picture(n, size=(24, 24)) for n in range(48)]


def config(root: Path) -> StreamConfig:
    return parse_config(
        {
            "root": str(root),
            "method": "distilled",
            "model": {"dim": 8, "image_size": SIZE},
            "learning": {"base_steps": 2, "stage_steps": 2, "classes_per_batch": 2, "images_per_class": 2},
            "boundary": {"new_classes": None, "images": 20, "age_s": None},
            "ingest": {"max_pixels": LIMIT},
            "evaluation": {"held_out": 0.2},
            "gate": {"enabled": False},
            "cluster": {"serve": False},
        }
    )


class OneStage:
    """An indexed folder of images with a closed task over it: all that a stage needs, without Ray."""

    def __init__(self, folder: Path) -> None:
        self.config = config(folder / "root")
        for n, image in enumerate(IMAGES):
            path = folder / f"zoo/class {n % 3}/{n:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(image)
        land_folder(inbox_path(self.config), folder / "zoo")
        spec = self.config.model
        assert isinstance(spec, EmbedderSpec)
        store = Store.create(self.config.root, spec.dim, keep_gallery=False)
        self.writer = Writer.claim(store, "test")
        self.writer.commit_root({STUDENT: embedder_to_bytes(build_embedder(spec, 0))})
        (self.ref,) = DirectorySource(inbox_path(self.config)).poll(set())
        self.files = sorted(Path(self.ref.uri).glob("*/*.png"))  # in the order of rows
        self.writer.record_landed([self.ref])
        head = self.writer.tree.head
        model = embedder_from_bytes(self.writer.store.artifact(head, STUDENT))
        done = index_shard(
            self.ref, model, head, open_files(self.config.root), IndexOptions(LIMIT, False, 0.2)
        )
        assert len(done.rows) == len(IMAGES)
        self.writer.commit_ingest(done)
        self.stages = Stages(self.writer, self.config.boundary, 1)
        assert len(self.stages.close_tasks()) == 1

    def learn(self) -> StageOrder:
        """Learn the task and commit its version."""
        order = self.stages.next_order()
        assert order is not None
        store = Store.open(self.config.root, keep_gallery=False)
        run = StageRun(self.config, order, store, World(), lambda progress: None)
        run.open()
        while run.learner.next_step < run.learner.total_steps:
            run.step()
        assert self.stages.commit(run.finish()) == order.version_id
        run.close()
        return order


def outcomes(stage: OneStage, order: StageOrder) -> tuple[dict[int, str], set[int]]:
    """Reasons of the rows in quarantine, and the rows that were embedded anew."""
    store = Store.open(stage.config.root)
    bad = {row["row"]: row["reason"] for row in store.quarantine_rows().to_pylist()}
    again = [row for row in store.gallery_rows().to_pylist() if row["version"] == order.version_id]
    return bad, {row["row"] for row in again}


def damaged(stage: OneStage, monkeypatch: pytest.MonkeyPatch) -> dict[int, str]:
    """Everything that can become of a row between its indexing and its task; row -> reason."""
    stage.files[3].write_bytes(stage.files[3].read_bytes()[:40])
    stage.files[7].unlink()
    stage.files[11].write_bytes(picture(99, size=(24, 24)))
    whole = decode.decode_image

    def fails_for_some(data: bytes, size: int, max_pixels: int) -> decode.Pixels:
        assert max_pixels == LIMIT
        if data == stage.files[15].read_bytes():
            raise BadImage(Reason.IMAGE_BOMB, "declares too many pixels")
        if data == stage.files[19].read_bytes():
            raise BadImage(Reason.OUT_OF_MEMORY, "more than there is")
        return whole(data, size, max_pixels)

    monkeypatch.setattr(rows, "decode_image", fails_for_some)
    return {3: "hash_mismatch", 7: "missing_file", 11: "hash_mismatch", 15: "image_bomb", 19: "out_of_memory"}


def test_a_task_is_learnt_without_the_rows_that_cannot_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = OneStage(tmp_path)
    expected = damaged(stage, monkeypatch)
    order = stage.learn()
    bad, again = outcomes(stage, order)
    assert bad == expected
    assert again == set(range(len(IMAGES))) - set(expected)
    store = Store.open(stage.config.root)
    assert store.tree.get(order.version_id).metrics["lost_images"] == len(expected)
    assert not store.tree.refusals
    stage.writer.release()


def test_a_shard_that_vanished_costs_only_its_own_rows_and_a_task_of_nothing_says_so(tmp_path: Path) -> None:
    stage = OneStage(tmp_path)
    manifest = Path(stage.ref.uri) / "_manifest.json"
    manifest.rename(tmp_path / "aside")
    with pytest.raises(
        StageFailed, match=r"48 of the 48 images .* cannot be read any more, first: missing_file"
    ):
        stage.learn()
    stage.writer.release()


def four_shards(folder: Path) -> tuple[list[Any], PixelCache]:
    for n in range(4):
        items = [NewItem(IMAGES[6 * n + i], f"class {i % 2}", f"{n}-{i}") for i in range(6)]
        land_items(folder / "inbox", f"s{n}", items)
    refs = DirectorySource(folder / "inbox").poll(set())
    members = [CacheMember(ref.shard_id, range(6), [f"class {i % 2}" for i in range(6)]) for ref in refs]
    return refs, PixelCache(folder / "cache", members, SIZE)


def fill(cache: PixelCache, refs: list[Any], readers: Readers | None = None) -> None:
    readers = readers or Readers()
    fill_cache(cache, refs, lambda uri: None, max_pixels=LIMIT, hang_s=60.0, readers=readers)


def test_a_changed_shard_is_lost_whole_and_the_others_are_not(tmp_path: Path) -> None:
    refs, cache = four_shards(tmp_path)
    Path(refs[2].uri).write_bytes(Path(refs[1].uri).read_bytes())
    fill(cache, refs)
    assert cache.lost().tolist() == [False] * 12 + [True] * 6 + [False] * 6
    assert {problem.reason for _, problem in cache.lost_rows()} == {Reason.CHANGED_WHILE_READ}
    assert cache.is_complete
    again = PixelCache(
        tmp_path / "cache",
        [CacheMember(r.shard_id, range(6), ["class 0", "class 1"] * 3) for r in refs],
        SIZE,
    )
    assert again.lost().sum() == 6
    assert len(again.lost_rows()) == 6


def test_what_ended_a_process_here_is_read_elsewhere(tmp_path: Path) -> None:
    refs, cache = four_shards(tmp_path)
    (cache.folder / task_cache.LOCAL_DECODE_MARK).touch()  # as a killed process leaves it
    asked: list[int] = []
    others = SimpleNamespace(
        spread=lambda wanted, _: filter(asked.append, [len(wanted)]), apart=lambda *_: iter([])
    )
    with pytest.raises(ValueError, match="24 of 24 rows are missing"):
        fill(cache, refs, cast("Readers", others))
    assert asked == [4]


@pytest.mark.slow  # readers that end are waited for: minutes on a loaded machine
@pytest.mark.ray
def test_a_row_that_ends_its_reader_is_left_out_and_its_neighbours_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a decoder that crashes on one image does."""
    refs, cache = four_shards(tmp_path)
    monkeypatch.setattr(task_cache, "LOCAL_DECODE_S", -1.0)
    poison(monkeypatch, tmp_path, IMAGES[6 + 3], "os.kill(os.getpid(), 11)")
    with ray_session(None, cpus=2, gpus=0):
        fill(cache, refs, RayReaders(0.1))
    assert np.flatnonzero(cache.lost()).tolist() == [9]
    ((shard, problem),) = cache.lost_rows()
    assert (shard, problem.row, problem.reason) == (refs[1].shard_id, 3, Reason.KILLED_READER)
    (block,) = decode_rows(refs[3], range(6), SIZE, LIMIT)
    assert (cache.pixels[18:] == block.pixels).all()  # type: ignore[union-attr]


def test_the_one_limit_holds_for_pushes_queries_indexing_and_learning(tmp_path: Path) -> None:
    stream = parse_config({"root": str(tmp_path), "ingest": {"max_pixels": 12_345}})
    assert stream.service.max_pixels == 12_345
    assert StreamConfig.model_validate_json(stream.model_dump_json()) == stream
    assert (
        StreamConfig().service.max_pixels == StreamConfig().ingest.max_pixels == ServiceOptions().max_pixels
    )
    with pytest.raises(ValueError, match=r"service.max_pixels 40000000 .* set ingest.max_pixels alone"):
        parse_config({"service": {"max_pixels": 40_000_000}})
    with pytest.raises(ValidationError):
        StreamConfig.model_validate({"ingest": {"max_pixels": 200_000_000}})
    assert example_yaml().count("max_pixels") == 1
    at_limit = picture(1, size=(100, 100))
    decoding = Decoding(ServiceOptions(max_pixels=LIMIT))
    asyncio.run(PushInbox(str(tmp_path / "push"), decoding).push([NewItem(at_limit, "a")], None))
    land_items(tmp_path / "inbox", "s", [NewItem(at_limit, "a")])
    (ref,) = DirectorySource(tmp_path / "inbox").poll(set())
    (taken,) = decode_rows(ref, [0], SIZE, LIMIT)
    assert isinstance(taken, rows.Block)
    (problem,) = decode_rows(ref, [0], SIZE, LIMIT - 1)
    assert problem.reason is Reason.IMAGE_BOMB  # type: ignore[union-attr]


def test_an_image_that_needs_more_memory_than_there_is_is_a_problem_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(decode, "_square", fails)
    with pytest.raises(BadImage, match="out_of_memory"):
        decode.decode_image(IMAGES[0], SIZE, LIMIT)
