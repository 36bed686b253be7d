"""Which tasks a stage of the trunk takes up: those that wait, and those that the floor refused once there are more."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.ingest.shard import ShardRef
from stream_odml.pipeline.later_stages import LaterRules, trained_tasks
from stream_odml.pipeline.messages import StageResult
from tests.killed import die_at, is_killed
from tests.pipeline.trunk_stream import CATEGORIES, Trunk, learns

RENEWS = {"store": {"renew_per_s": 1e5}}
FLOOR = {"parent_recall_at_1/union": 0.7, "recall_at_1/union/served": 0.7}


def refuses(stream: Trunk, figures: Mapping[str, Any] = FLOOR) -> tuple[str, ...] | None:
    """The tasks of a stage whose result is not wanted; without figures it has failed."""
    order = stream.later()
    if order is None:
        return None
    of = order.version_id, order.parent, order.task
    stream.stages.commit(StageResult(*of, metrics=dict(figures), refusal="serves no more"))
    return order.tasks


def with_a_refused_task(folder: Path) -> Trunk:
    """A stream whose trunk knows three classes, and has not passed the floor by three others."""
    stream = Trunk(folder, {"trunk": "distilled"})
    learns(stream, "one", 0, 3)
    learns(stream, "two", 3, 6)
    assert refuses(stream) == ("task-0002",)
    return stream


@pytest.mark.parametrize("rate", [0.0, 1e5])
def test_tasks_of_a_refused_stage_wait_for_later_ones(tmp_path: Path, rate: float) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"}, store={"renew_per_s": rate})
    learns(stream, "one", 0, 3)
    learns(stream, "two", 3, 6)
    assert refuses(stream) == ("task-0002",)
    assert refuses(stream) is None
    learns(stream, "three", 6, 7)
    assert refuses(stream) is None, "four classes wait in place of three"
    learns(stream, "four", 7, 9)
    stream.stages = stream.new_stages()
    assert refuses(stream) == ("task-0002", "task-0003", "task-0004")
    learns(stream, "five", 9, 11)
    assert refuses(stream) is None, "eight in place of six"
    learns(stream, "six", 11, 12)
    order = stream.improve()
    assert order is not None
    assert order.tasks == tuple(f"task-{number:04}" for number in range(2, 7))
    assert trained_tasks(stream.writer.ledger, stream.writer.tree, stream.writer.tree.head) >= {*order.tasks}


def test_tasks_of_a_refused_stage_whose_images_are_gone_hold_up_no_others(tmp_path: Path) -> None:
    stream = with_a_refused_task(tmp_path)
    learns(stream, "three", 6, 7)
    assert refuses(stream) is None, "four classes wait in place of three"
    learns(stream, "four", 7, 8)
    (Path(stream.inbox) / "two.parquet").unlink()
    assert refuses(stream) == ("task-0003", "task-0004")


def test_tasks_of_a_stage_that_failed_do_not_hold_up_those_behind_them(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"}, **RENEWS)
    learns(stream, "one", 0, 3)
    learns(stream, "two", 3, 6)
    assert refuses(stream, {}) == ("task-0002",)
    learns(stream, "three", 6, 8)
    assert refuses(stream) == ("task-0003",)


def test_classes_that_a_trunk_knows_are_not_counted_and_new_images_of_them_are(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"}, **RENEWS)
    learns(stream, "one", 0, 3)
    learns(stream, "two", 0, 6)
    assert refuses(stream) == ("task-0002",)
    learns(stream, "three", 6, 8)
    assert refuses(stream) == ("task-0002", "task-0003"), (
        "five new ones in place of three, three that it knows"
    )
    known = Trunk(tmp_path / "known", {"trunk": "distilled"}, **RENEWS)
    learns(known, "one", 0, 4)
    learns(known, "two", 0, 4)
    assert refuses(known) == ("task-0002",)
    learns(known, "three", 0, 4)
    assert refuses(known) == ("task-0002", "task-0003"), "twice as many images"
    learns(known, "four", 0, 2)
    assert refuses(known) is None, "a quarter more"


def test_more_images_of_classes_that_wait_are_enough(tmp_path: Path) -> None:
    stream = with_a_refused_task(tmp_path)
    learns(stream, "three", 3, 4)
    assert refuses(stream) is None, "a third more"
    learns(stream, "four", 3, 6)
    assert refuses(stream) == ("task-0002", "task-0003", "task-0004")


def test_a_task_whose_images_are_gone_is_taken_up_by_no_stage(tmp_path: Path) -> None:
    stream = with_a_refused_task(tmp_path)
    learns(stream, "three", 6, 9)
    (Path(stream.inbox) / "three.parquet").unlink()
    assert refuses(stream) is None, "nothing came with which the other is tried again"
    learns(stream, "four", 9, 11)
    assert refuses(stream) == ("task-0002", "task-0004")


def test_a_task_is_learnt_from_where_a_shard_in_ten_is_gone(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"})
    learns(stream, "one", 0, 3)
    for k in range(10):
        land_items(stream.inbox, f"p{k}", [NewItem(c.images[k], c.class_name) for c in CATEGORIES[3:6]])
    complete_task(stream.inbox, "two", [f"p{k}.parquet" for k in range(10)])
    stream._index()
    stream.learn()
    (Path(stream.inbox) / "p4.parquet").unlink()
    assert refuses(stream) == ("task-0002",)


def test_forgotten_classes_hold_up_no_others(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"})
    learns(stream, "one", 0, 2)
    learns(stream, "two", 2, 8)
    assert refuses(stream) == ("task-0002",)
    for category in CATEGORIES[2:8]:
        stream.writer.forget("class", category.class_name, 10)
    learns(stream, "three", 8, 10)
    assert refuses(stream) == ("task-0003",)


def test_images_are_looked_for_once_there_are_enough_and_once_for_each_change(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"})
    looks: list[str] = []
    is_there = [False]

    def is_gone(ref: ShardRef) -> bool:
        looks.append(ref.shard_id)
        return not is_there[0]

    stream.stages._later._rules = LaterRules("distilled", is_gone=is_gone)
    learns(stream, "one", 0, 3)
    learns(stream, "two", 3, 6)
    assert [refuses(stream) for _ in range(3)] == [None] * 3
    assert len(looks) == 1
    is_there[0] = True
    learns(stream, "three", 6, 9)
    assert refuses(stream) == ("task-0003",)
    learns(stream, "four", 9, 10)
    assert refuses(stream) is None
    assert len(looks) == 2, "too few came to look for any"


def _is_refused(folder: Path) -> None:
    stream = Trunk(folder, {"trunk": "distilled"})
    learns(stream, "one", 0, 3)
    learns(stream, "two", 3, 6)
    die_at("refuse.after_ledger")
    refuses(stream)


def test_killed_while_its_stage_is_refused_a_task_waits_all_the_same(tmp_path: Path) -> None:
    assert is_killed(_is_refused, tmp_path)
    stream = Trunk(tmp_path, {"trunk": "distilled"})
    learns(stream, "three", 6, 9)
    assert refuses(stream) == ("task-0002", "task-0003")
