"""Tasks close in the order of landing, keep their attempt over restarts, and are learnt once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stream_odml.ingest.boundary import BoundaryPolicy
from stream_odml.ingest.shard import ShardManifest
from stream_odml.pipeline.messages import StageProgress, StageResult
from stream_odml.pipeline.stages import MAX_FAILURES, MAX_STALLS, Stages
from stream_odml.store.writer import Writer
from tests.cluster.small_root import artifacts, claim, index, shard

TWO_CLASSES = BoundaryPolicy(new_classes=2, images=None, age_s=None)


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Writer]:
    writer = claim(tmp_path / "root")
    yield writer
    writer.release()


def result(writer: Writer, stages: Stages) -> StageResult:
    """What a trainer would hand over for the current order."""
    order = stages.next_order()
    assert order is not None
    return StageResult(order.version_id, order.parent, order.task, artifacts(writer, order.version_id))


def test_a_task_closes_when_its_rule_holds(writer: Writer) -> None:
    stages = Stages(writer, TWO_CLASSES, max_refusals=1)
    first, second = shard("a"), shard("b")
    writer.record_landed([first, second])
    index(writer, first, {"oak": 3})
    assert stages.close_tasks() == []
    assert any("new classes: 1 of 2" in line for line in stages.explain())
    index(writer, second, {"elm": 3})
    assert stages.close_tasks() == ["task-0001"]
    assert writer.store.ledger.tasks["task-0001"].shard_ids == (first.shard_id, second.shard_id)


def test_a_shard_indexed_early_waits_for_those_that_landed_before(writer: Writer) -> None:
    stages = Stages(writer, TWO_CLASSES, max_refusals=1)
    slow, fast = shard("slow"), shard("fast")
    writer.record_landed([slow, fast])
    index(writer, fast, {"oak": 3, "elm": 3})
    assert stages.close_tasks() == []
    index(writer, slow, {"ash": 3, "fir": 3})
    stages.close_tasks()
    assert [task.shard_ids for task in writer.store.ledger.tasks.values()] == [
        (slow.shard_id,),
        (fast.shard_id,),
    ]


def test_what_comes_while_a_task_is_learnt_joins_the_next_new_class_or_known(writer: Writer) -> None:
    stages = Stages(writer, TWO_CLASSES, max_refusals=1)
    first, known, new = shard("first"), shard("known"), shard("new")
    writer.record_landed([first])
    index(writer, first, {"oak": 3, "elm": 3})
    assert stages.close_tasks() == ["task-0001"]
    learning = result(writer, stages)
    writer.record_landed([known, new])
    index(writer, known, {"oak": 3})
    assert stages.close_tasks() == []
    index(writer, new, {"ash": 3, "fir": 3})
    assert stages.close_tasks() == ["task-0002"]
    assert stages.is_current(learning.version_id)  # nothing that came disturbs the task under way
    stages.commit(learning)
    tasks = writer.store.ledger.tasks
    assert tasks["task-0001"].shard_ids == (first.shard_id,)
    assert tasks["task-0002"].shard_ids == (known.shard_id, new.shard_id)
    order = stages.next_order()
    assert order is not None
    assert (order.task, order.parent) == ("task-0002", learning.version_id)


def test_held_out_images_do_not_count(writer: Writer) -> None:
    stages = Stages(writer, BoundaryPolicy(new_classes=None, images=6, age_s=None), max_refusals=1)
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 4, "elm": 4}, held_out=2)
    assert stages.close_tasks() == []


def test_a_manifest_with_too_little_to_learn_is_skipped_with_a_reason(writer: Writer) -> None:
    stages = Stages(writer, BoundaryPolicy(new_classes=None, images=None, age_s=None), max_refusals=1)
    ref = shard("a", ShardManifest(task="spring", task_complete=True))
    writer.record_landed([ref])
    index(writer, ref, {"oak": 5})
    assert stages.close_tasks() == ["task-0001"]
    assert stages.next_order() is None
    assert "nothing to learn" in str(writer.store.ledger.tasks["task-0001"].skipped)


def test_an_order_is_the_same_until_it_is_committed(writer: Writer) -> None:
    stages = Stages(writer, TWO_CLASSES, max_refusals=1)
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 3, "elm": 3})
    stages.close_tasks()
    order = stages.next_order()
    restarted = Stages(writer, TWO_CLASSES, max_refusals=1).next_order()
    assert order is not None
    assert restarted is not None
    assert (restarted.version_id, restarted.shards) == (order.version_id, order.shards)
    stages.commit(result(writer, stages))
    assert writer.store.tree.head == order.version_id
    assert stages.next_order() is None


def test_a_commit_may_be_repeated(writer: Writer) -> None:
    stages = Stages(writer, TWO_CLASSES, max_refusals=1)
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 3, "elm": 3})
    stages.close_tasks()
    once = result(writer, stages)
    assert stages.commit(once) == stages.commit(once) == once.version_id
    assert len(writer.store.tree.versions) == 2


def test_a_refused_stage_is_tried_again_then_skipped(writer: Writer) -> None:
    stages = Stages(writer, TWO_CLASSES, max_refusals=1)
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 3, "elm": 3})
    stages.close_tasks()
    head = writer.store.tree.head
    for retry in range(2):
        order = stages.next_order()
        assert order is not None
        assert order.retry == retry
        refusal = StageResult(order.version_id, order.parent, order.task, refusal="it would hurt")
        assert stages.commit(refusal) == head
    assert stages.next_order() is None
    assert "it would hurt" in str(writer.store.ledger.tasks["task-0001"].skipped)


def test_an_attempt_that_keeps_failing_is_given_up(writer: Writer) -> None:
    stages = Stages(writer, TWO_CLASSES, max_refusals=0)
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 3, "elm": 3})
    stages.close_tasks()
    order = stages.next_order()
    assert order is not None
    for _ in range(MAX_FAILURES):
        assert stages.next_order() is not None
        stages.failed(order, "out of memory")
        stages.failed(order, "a peer's own words", rank=1)
    assert stages.next_order() is None
    assert "out of memory" in str(writer.store.ledger.tasks["task-0001"].skipped)


def one_task(writer: Writer, max_refusals: int = 0) -> Stages:
    """A closed task that waits to be learnt."""
    stages = Stages(writer, TWO_CLASSES, max_refusals)
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 3, "elm": 3})
    stages.close_tasks()
    return stages


def test_an_attempt_that_is_killed_often_but_gets_on_is_kept(writer: Writer) -> None:
    stages = one_task(writer)
    order = stages.dispatch(StageProgress())
    assert order is not None
    for step in range(1, 3 * MAX_STALLS):
        again = stages.dispatch(StageProgress("training", version=order.version_id, step=step))
        assert again is not None
        assert again.version_id == order.version_id


def test_an_attempt_that_never_gets_past_a_step_is_given_up(writer: Writer) -> None:
    stages = one_task(writer)
    order = stages.dispatch(StageProgress())
    assert order is not None
    stuck = StageProgress("training", version=order.version_id, step=7)
    for _ in range(MAX_STALLS):
        assert stages.dispatch(stuck) is not None
    assert stages.dispatch(stuck) is None
    assert "without a further step" in str(writer.store.ledger.tasks["task-0001"].skipped)


def test_a_refused_stage_leaves_no_vectors_behind(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 2, "elm": 2})
    writer.close_task("task-0001", [ref.shard_id], "test")
    stages = Stages(writer, BoundaryPolicy(), 1)
    order = stages.next_order()
    assert order is not None
    part = f"artifacts/{order.version_id}/rows-0.parquet"
    writer.store.files.write(part, b"rows")
    stages.commit(StageResult(order.version_id, order.parent, order.task, rows=(part,), refusal="worse"))
    assert not writer.store.files.exists(part)
    writer.release()
