"""What is summed before a task closes gives the same head, to the last bit, whatever happened meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.lift import Lift
from stream_odml.pipeline import sums_ahead
from stream_odml.pipeline.fast_stage import fast_stage
from stream_odml.pipeline.sums_ahead import SumsAhead
from stream_odml.store.artifacts import HEAD, read_artifact
from stream_odml.store.store import Store
from stream_odml.store.sums import TrainingRows, task_rows
from tests.pipeline.exact_stream import D, ExactStream

LIFT = Lift(D, 8)
SHARDS = {name: {f"{name} {i}": 5 for i in range(4)} | {"everywhere": 3} for name in ("a", "b", "c", "d")}


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ExactStream]:
    monkeypatch.setattr(sums_ahead, "FEW_ROWS", 1)
    monkeypatch.setattr(sums_ahead, "MAX_ROWS", 30)  # a shard and the beginning of another
    stream = ExactStream(
        tmp_path / "root", model={"head": "discriminant", "dim": 12, "image_size": 16, "lift": 8}
    )
    yield stream
    stream.writer.release()


def all_ahead(stream: ExactStream) -> SumsAhead:
    ahead = SumsAhead()
    while ahead.add(Store.open(stream.config.root), LIFT):
        pass
    return ahead


def waiting(stream: ExactStream) -> dict[str, str]:
    """Shards that no boundary has closed, by name."""
    return {name: stream.land(name, classes, held_out=1, closes=False) for name, classes in SHARDS.items()}


def rows_of(stream: ExactStream, shards: list[str]) -> TrainingRows:
    store = Store.open(stream.config.root)
    return task_rows(store, store.tree.head, shards)


def same(found: ClassSums, rows: TrainingRows) -> bool:
    expected = rows.sums(LIFT)
    return (
        found.names == expected.names
        and np.array_equal(found.counts_C, expected.counts_C)
        and np.array_equal(found.sums_CE, expected.sums_CE)
        and np.array_equal(found.products_EE, expected.products_EE)
    )


@pytest.mark.parametrize("task", ["abcd", "abc", "bd", "d"])
def test_a_task_of_any_of_the_shards_has_the_sums_of_its_rows_and_no_row_is_read_again(
    stream: ExactStream, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = waiting(stream)
    ahead = all_ahead(stream)
    rows = rows_of(stream, [shards[name] for name in task])
    read: list[int] = []
    summed = TrainingRows.sums

    def counted(rows: TrainingRows, lift: Lift) -> ClassSums:
        read.append(len(rows))
        return summed(rows, lift)

    monkeypatch.setattr(TrainingRows, "sums", counted)
    found = ahead.of(rows, LIFT)
    monkeypatch.undo()
    assert same(found, rows)
    others = rows_of(stream, [shards[name] for name in shards if name not in task])
    assert sum(read) == len(others), "of the task itself no row was left to read"
    assert same(ahead.of(others, LIFT), others), "and what was kept of others is theirs"


def test_what_was_forgotten_or_replaced_meanwhile_is_in_no_sum(stream: ExactStream) -> None:
    shards = waiting(stream)
    for subject in (("class", "a 1"), ("item", "b/7"), ("class", "everywhere")):
        ahead = all_ahead(stream)
        stream.writer.forget(*subject, 1)
        rows = rows_of(stream, list(shards.values()))
        assert subject[1] not in rows.classes + rows.keys
        assert same(ahead.of(rows, LIFT), rows)
        some = rows_of(stream, [shards["a"], shards["b"]])
        assert same(all_ahead(stream).of(some, LIFT), some)
    ahead = all_ahead(stream)
    stream.writer.forget("shard", shards["d"], 20)
    rows = rows_of(stream, [shards["a"]])
    assert same(ahead.of(rows, LIFT), rows)


def test_sums_of_another_lift_or_of_shards_that_were_set_aside_are_not_used(stream: ExactStream) -> None:
    shards = waiting(stream)
    ahead = all_ahead(stream)
    rows = rows_of(stream, [shards["a"]])
    assert ahead.of(rows, Lift(D)).lift == Lift(D)
    ahead = all_ahead(stream)
    stream.writer.set_aside(shards["b"], "nobody wants it")
    stream.land("e", SHARDS["a"], closes=False)
    store = Store.open(stream.config.root)
    while ahead.add(store, LIFT):
        pass
    rows = rows_of(stream, [shards["a"]])
    assert same(ahead.of(rows, LIFT), rows)


def test_a_fast_stage_gives_the_same_head_with_and_without(stream: ExactStream) -> None:
    stream.land("first", {f"tree {i}": 12 for i in range(6)}, held_out=3)
    stream.learn()
    for name, classes in SHARDS.items():
        stream.land(name, classes, closes=False)
    ahead = all_ahead(stream)
    stream.land("last", {"one more": 4})
    order = stream.order()
    assert len(order.shards) == len(SHARDS) + 1
    store = Store.open(stream.config.root)
    heads = [
        read_artifact(store.files, fast_stage(store, order, stream.config, kept).artifacts[HEAD])
        for kept in (None, ahead)
    ]
    assert heads[0] == heads[1]
