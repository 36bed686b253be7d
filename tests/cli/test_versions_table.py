"""The table of versions: what each row says of its version, whatever the tasks had in common."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from stream_odml.cli.versions_table import stage_rows
from stream_odml.store.writer import Writer
from tests.cluster.small_root import artifacts, claim, index, shard
from tests.service.vector_stream import VectorStream


def learn(writer: Writer, number: int, classes: Mapping[str, int], held_out: int = 0) -> None:
    """Learn a task of so many images of each class, as a model with a head of its own does."""
    ref, task = shard(f"shard-{number}"), f"task-000{number}"
    writer.record_landed([ref])
    index(writer, ref, classes, held_out)
    writer.close_task(task, [ref.shard_id], "test")
    version, rows = writer.begin_attempt(task), writer.store.gallery_rows().slice(0, 0)
    metrics = {"classes": float(len(classes))}
    writer.commit_stage(version, writer.tree.head, task, artifacts(writer, version), rows, metrics)


def test_a_class_of_two_tasks_is_one_class(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    learn(writer, 1, {"ash": 3, "elm": 2})
    learn(writer, 2, {"ash": 1, "elm": 1})
    learn(writer, 3, {"elm": 2, "oak": 2})
    # All that there is of it is held out: nothing of it was learnt.
    learn(writer, 4, {"fig": 1}, held_out=1)
    assert [row["classes"] for row in stage_rows(writer.store)] == [2, 2, 3, 3]
    writer.release()


def test_under_a_solved_head_it_is_what_its_sums_hold(tmp_path: Path) -> None:
    stream = VectorStream(tmp_path)
    stream.land("one", ["ash", "elm", "oak"] * 8)
    stream.learn()
    stream.land("two", ["ash", "elm"] * 8)
    stream.learn()
    stream.land("three", ["oak", "yew"] * 8)
    stream.learn()
    rows = stage_rows(stream.writer.store)
    stream.close()
    assert [row["classes"] for row in rows] == [3, 3, 4]
