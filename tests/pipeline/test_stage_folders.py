"""What stages leave on a node's disk: none of it outlives what learns, and the proof of erasure sees what does."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import ray.train

from stream_odml.cluster import trainer
from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.cache import CacheMember, PixelCache
from stream_odml.learn.world import World
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.pipeline.messages import Instruction, StageOrder
from stream_odml.pipeline.stage_folders import cache_root, keep_only, stage_folder
from stream_odml.pipeline.stage_run import StageRun
from stream_odml.store.store import Store
from tests.pipeline.trunk_stream import CATEGORIES, Trunk

ORDER = StageOrder("task-0002", "v0002-aa", "v0001-bb", 2, (), 0.0)
SLOW = StageOrder("task-0002", "v0003-cc", "v0002-aa", 3, (), 0.0, kind="slow", tasks=("task-0002",))


def left_in(caches: Path) -> list[str]:
    return sorted(entry.name for entry in caches.iterdir()) if caches.exists() else []


def config_of(folder: Path) -> StreamConfig:
    return StreamConfig.model_validate({"root": "s3://bucket/root", "cluster": {"cache_dir": str(folder)}})


def left_by_stages(caches: Path) -> None:
    """Pixels and scratch of two stages, on two nodes; pixels as an earlier release named them."""
    for order in (ORDER, SLOW):
        for number in range(2):
            stage_folder(caches, order, "node", number).mkdir(parents=True)
            stage_folder(caches, order, "rank", number).mkdir()
            (stage_folder(caches, order, "rank", number) / "ab.f4").touch()
    PixelCache(caches / "task-0000", [CacheMember("a", [0], ["oak"])], 4)


@pytest.mark.parametrize(("order", "stem"), [(ORDER, "task-0002"), (SLOW, "v0003-cc")])
def test_only_the_stage_in_hand_keeps_its_folders(tmp_path: Path, order: StageOrder, stem: str) -> None:
    left_by_stages(tmp_path)
    keep_only(tmp_path, order)
    assert left_in(tmp_path) == [f"{stem}.node-0", f"{stem}.node-1", f"{stem}.rank-0", f"{stem}.rank-1"]
    assert stage_folder(tmp_path, order, "rank", 1).joinpath("ab.f4").exists()
    keep_only(tmp_path, None)
    assert left_in(tmp_path) == []
    keep_only(tmp_path / "never made", None)


def test_streams_of_one_name_share_a_node_and_not_their_folders(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    mine, theirs = cache_root(config, "1111"), cache_root(config, "2222")
    for caches in (mine, theirs):
        left_by_stages(caches)
    before = left_in(theirs)
    keep_only(mine, None)
    assert left_in(mine) == []
    assert left_in(theirs) == before


def test_nothing_else_is_removed_where_the_folder_is_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk" / "photographs").mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "disk" / "task-0001.node-0").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    left_by_stages(tmp_path / "cache")
    keep_only(tmp_path / "cache", None)
    assert left_in(tmp_path / "disk") == ["photographs", "task-0001.node-0"]
    assert (tmp_path / "elsewhere").exists()


class FakeWorker:
    """The rank of a trainer without its training run: what the driver says is given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stream: Trunk, leads: bool = True) -> None:
        self.said: list[Instruction] = []
        monkeypatch.setattr(trainer, "call_driver", lambda method: self.said.pop(0))
        self.worker: Any = object.__new__(trainer._Worker)
        self.worker.config, self.worker.store = stream.config, Store.open(stream.config.root)
        self.worker.world, self.worker.node, self.worker.leads_node = World(), 0, leads
        self.worker._is_warm = True

    def is_given(self, *said: Instruction) -> StageOrder | None:
        self.said[:] = said
        return cast("StageOrder | None", self.worker.next_order())


def stream_of_one_task(folder: Path) -> tuple[Trunk, StageOrder, Path]:
    stream = Trunk(folder)
    stream.land("one", CATEGORIES[:2])
    order = stream.stages.next_order()
    assert order is not None
    return stream, order, folder / "root" / "cache"


def begun(stream: Trunk, order: StageOrder) -> StageRun:
    """A stage of which nobody hears again once its pixels are decoded."""
    run = StageRun(stream.config, order, Store.open(stream.config.root), World(), lambda said: None)
    run.open()
    return run


def test_a_trainer_keeps_the_stage_that_goes_on_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, order, caches = stream_of_one_task(tmp_path)
    begun(stream, order)
    left_by_stages(caches)
    other = FakeWorker(monkeypatch, stream, leads=False)
    before = left_in(caches)
    assert other.is_given(Instruction(order)) is order
    assert left_in(caches) == before, "the leader of a node does it for all of its ranks"
    leader = FakeWorker(monkeypatch, stream)
    assert leader.is_given(Instruction(order)) is order
    assert left_in(caches) == ["task-0001.node-0"], "it goes on with the pixels that it has"
    assert leader.is_given(Instruction(), Instruction(order)) is order
    assert left_in(caches) == [], "while it waits nothing is in hand"
    left_by_stages(caches)
    assert leader.is_given(Instruction(stop=True)) is None
    assert left_in(caches) == []


def test_the_proof_sees_what_a_killed_stage_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, order, caches = stream_of_one_task(tmp_path)
    begun(stream, order)
    stream.land("two", CATEGORIES[2:4])
    later = stream.writer.begin_later_attempt("slow", [order.task])
    for name in (f"{later}.node-1", f"{order.task}.rank-3", "task-0002.node-0", "task-9999.node-0"):
        (caches / name).mkdir()
        (caches / name / "ab.f4").touch()
    stream.writer.forget("class", CATEGORIES[0].class_name, 10)
    (caches / f"{order.task}.node-7").mkdir()
    (caches / f"{order.task}.node-7" / "pixels.u8").touch()  # decoded after the request
    found = verify_forgotten(stream.config.root, "class", CATEGORIES[0].class_name).findings
    wanted = [f"{order.task}.node-0", f"{order.task}.rank-3", "task-9999.node-0", f"{later}.node-1"]
    assert [line for line in found if line.startswith("cache/")] == [
        f"cache/{name}: decoded pixels" for name in wanted
    ]
    FakeWorker(monkeypatch, stream).is_given(Instruction(stop=True))
    found = verify_forgotten(stream.config.root, "class", CATEGORIES[0].class_name).findings
    assert not [line for line in found if line.startswith("cache/")]


def test_progress_is_written_aside_where_the_next_stage_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream, order, caches = stream_of_one_task(tmp_path)
    run, seen = begun(stream, order), []

    def report(metrics: dict[str, int], checkpoint: Any) -> None:
        seen.append((Path(checkpoint.path), sorted(file.name for file in Path(checkpoint.path).iterdir())))

    monkeypatch.setattr(ray.train, "report", report)
    FakeWorker(monkeypatch, stream).worker._record(run)
    assert seen == [(caches / "task-0001.rank-0", ["progress.safetensors", "version_id"])]
    assert left_in(caches) == ["task-0001.node-0"]
