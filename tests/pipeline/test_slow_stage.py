"""After a task is learnt within seconds, the trunk is moved by its images: what is stored follows by a map, sums and
head are of what is stored, and whatever was learnt meanwhile is in them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.drift import AffineMap, drift_map_from_bytes
from stream_odml.learn.head_choice import choose_head
from stream_odml.pipeline import head_solving
from stream_odml.pipeline.figures import stream_figures
from stream_odml.pipeline.late_erasure import StaleSums
from stream_odml.pipeline.later_stages import LaterStages, mapped_shards
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.artifacts import BACKWARD, CANARIES, FORWARD, HEAD, STUDENT, SUMS
from stream_odml.store.errors import StaleParent
from stream_odml.store.sums import forget_in_sums
from tests.killed import die_at, is_killed
from tests.pipeline.trunk_stream import CATEGORIES, Trunk


def distilled(folder: Path, **config: object) -> Trunk:
    """A stream that has learnt its base and, by sums alone, a second task."""
    stream = Trunk(folder, {"trunk": "distilled"}, **config)
    stream.land("one", CATEGORIES[:3])
    stream.learn()
    stream.land("two", CATEGORIES[3:6])
    assert stream.learn().kind == "head"
    return stream


def test_a_trunk_moves_and_what_is_stored_follows(tmp_path: Path) -> None:
    stream = distilled(tmp_path)
    store = stream.writer.store
    fast = store.tree.head
    order = stream.improve()
    assert order is not None
    assert (order.kind, order.own, order.parent) == ("slow", ("task-0002",), fast)
    slow = store.tree.get(store.tree.head)
    assert slow.version_id == order.version_id
    assert set(slow.artifacts) == {STUDENT, CANARIES, FORWARD, BACKWARD, HEAD, SUMS}
    assert not store.tree.same_trunk(fast, slow.version_id)
    assert len(store.head_of(slow.version_id).names) == 6
    assert slow.metrics["kind"] == "slow"
    assert {"recall_at_1/union/served", "parent_recall_at_1/union", "recall_at_1/new/served"} <= set(
        slow.metrics
    )
    assert stream_figures(store, 1).slow_stage == {
        "fast": slow.metrics["parent_recall_at_1/union"],
        "slow": slow.metrics["recall_at_1/union/served"],
        "renewed": slow.metrics["recall_at_1/union/reextracted"],
    }
    for version in list(store.tree.versions)[1:]:
        assert stream.sums_are_of_what_is_stored(version), "of every version, whatever was learnt from it"
    rows = store.gallery_rows(vectors=False)
    assert rows["version"].to_pylist().count(slow.version_id) == 30, "the task's own items are embedded anew"
    head, sums = store.head_of(slow.version_id), store.sums_of(slow.version_id)
    assert sums is not None
    assert head.known_dE.tobytes() == solve_head(sums, head.settings).known_dE.tobytes()
    assert stream.improve() is None, "a task moves a trunk once"
    snapshot = GallerySnapshot.load(store)
    assert len(snapshot) == 60
    # A client's vector of the version before goes on by the map.
    vector = np.random.default_rng(0).random((1, store.head_of(fast).dim), np.float32)
    assert len(snapshot.search(vector, fast, k=5)[0]) == 5


@pytest.mark.parametrize("discriminant", [False, True])
def test_a_moved_trunk_keeps_the_discriminant_that_was_chosen_on_the_one_before(
    discriminant: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own images tell nothing of it any more."""
    kept: list[bool] = []

    def known(sums: ClassSums, *rest: Any, earlier: HeadSettings | None, **more: Any) -> HeadSettings:
        kept.append(earlier is not None and earlier.discriminant)
        chosen = choose_head(sums, *rest, earlier=earlier, **more)
        return replace(chosen, discriminant=discriminant)

    monkeypatch.setattr(head_solving, "choose_head", known)
    stream = distilled(tmp_path)
    kept.clear()
    assert stream.improve() is not None
    assert kept == [discriminant]


def test_a_head_is_chosen_with_the_classes_that_its_trunk_was_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others tell what serves classes to come."""
    given: list[set[str]] = []

    def noted(*rest: Any, trained: Collection[str], **more: Any) -> HeadSettings:
        given.append(set(trained))
        return choose_head(*rest, **more, trained=trained)

    monkeypatch.setattr(head_solving, "choose_head", noted)
    stream = distilled(tmp_path)
    base, second = ({one.class_name for one in CATEGORIES[i : i + 3]} for i in (0, 3))
    assert stream.improve() is not None
    stream.land("three", CATEGORIES[6:9])
    stream.learn()
    assert given == [base, base, base | second, base | second]


def test_the_layer_of_the_first_trunk_goes_with_every_head_and_follows_a_moved_trunk(tmp_path: Path) -> None:
    stream = distilled(tmp_path)
    store = stream.writer.store
    first, base, fast = store.tree.versions
    layer_lD = store.head_of(base).layer_lD
    assert len(store.head_of(first).layer_lD) == 0
    assert layer_lD.shape == (8, store.dim)
    assert np.array_equal(store.head_of(fast).layer_lD, layer_lD)
    order = stream.improve()
    assert order is not None
    backward = drift_map_from_bytes(store.artifact(order.version_id, BACKWARD))
    assert isinstance(backward, AffineMap)
    moved_lD = store.head_of(order.version_id).layer_lD
    assert np.array_equal(moved_lD, layer_lD @ backward.A)
    stream.land("three", CATEGORIES[6:9])
    stream.learn()
    assert np.array_equal(store.head_of(store.tree.head).layer_lD, moved_lD)


def test_a_head_with_a_layer_stays_that_of_its_sums_when_something_is_forgotten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_layer(*rest: Any, **more: Any) -> HeadSettings:
        return replace(choose_head(*rest, **more), discriminant=True, layer=0.5)

    monkeypatch.setattr(head_solving, "choose_head", with_layer)
    stream = distilled(tmp_path)
    stream.writer.forget("class", CATEGORIES[1].class_name, 10)
    forget_in_sums(stream.writer)
    store = stream.writer.store
    head, sums = store.head_of(store.tree.head), store.sums_of(store.tree.head)
    assert sums is not None
    assert (head.settings.layer, len(head.names), head.known_dim) == (0.5, 5, 8)
    assert head.equals(solve_head(sums, head.settings, head.layer_lD), 0.0)
    assert not head.equals(solve_head(sums, replace(head.settings, layer=0.0), head.layer_lD))


def test_what_is_learnt_meanwhile_is_in_the_result(tmp_path: Path) -> None:
    stream = distilled(tmp_path)
    order = stream.later()
    assert order is not None
    run = stream.run(order)
    result = run.finish()
    stream.land("three", CATEGORIES[6:9])
    fast = stream.learn()
    assert fast.kind == "head"
    with pytest.raises(StaleParent):
        stream.stages.commit(result)
    assert stream.stages.is_current(order.version_id), "it is settled again, not learnt again"
    again = run.settle()
    assert again.parent == fast.version_id
    assert stream.stages.commit(again) == order.version_id
    store = stream.writer.store
    head = store.tree.head
    assert head == order.version_id
    assert store.tree.learnt() == {"task-0001", "task-0002", "task-0003"}
    assert len(store.head_of(head).names) == 9
    for version in list(store.tree.versions)[1:]:
        assert stream.sums_are_of_what_is_stored(version)
    assert again.metrics["trunk/trained"] == pytest.approx(6 / 9), "the third task moved no trunk yet"
    later = stream.later()
    assert later is not None
    assert later.own == ("task-0003",)


def test_tasks_that_waited_move_the_trunk_together(tmp_path: Path) -> None:
    stream = distilled(tmp_path)
    stream.land("three", CATEGORIES[6:9])
    stream.learn()
    order = stream.improve()
    assert order is not None
    assert order.own == ("task-0002", "task-0003")
    assert stream.sums_are_of_what_is_stored()
    stream.land("four", CATEGORIES[9:12])
    stream.learn()
    order = stream.improve()
    assert order is not None
    assert order.own == ("task-0004",)
    assert stream.sums_are_of_what_is_stored()
    assert stream.writer.store.mapper.get(
        stream.writer.tree, list(stream.writer.tree.versions)[1], order.version_id
    )


def test_what_was_forgotten_meanwhile_is_not_in_the_result(tmp_path: Path) -> None:
    stream = distilled(tmp_path)
    order = stream.later()
    assert order is not None
    run = stream.run(order)
    result = run.finish()
    for gone in (CATEGORIES[0], CATEGORIES[4]):  # of what is mapped, and of the stage's own
        stream.writer.forget("class", gone.class_name, 10)
    with pytest.raises(StaleSums):
        stream.stages.commit(result)
    stream.stages.commit(run.settle())
    store = stream.writer.store
    assert store.tree.head == order.version_id
    names = store.head_of(store.tree.head).names
    assert len(names) == 4
    assert not {CATEGORIES[0].class_name, CATEGORIES[4].class_name} & set(names)
    assert stream.sums_are_of_what_is_stored()
    stream.writer.forget("item", str(store.gallery_rows(vectors=False)["item_id"][12]), 1)
    forget_in_sums(stream.writer)
    for version in list(store.tree.versions)[1:]:
        assert stream.sums_are_of_what_is_stored(version), "erased exactly, on both sides of the map"


def test_a_trunk_that_serves_no_more_is_refused_and_its_tasks_are_done_with(tmp_path: Path) -> None:
    # Steps so large that they destroy the trunk, held by nothing.
    stream = distilled(tmp_path)
    learning = replace(stream.config.learning, learning_rate=3.0, weight_hold_renewed=0.0, stage_steps=8)
    gate = stream.config.gate.model_copy(update={"enabled": True})
    stream.config = stream.config.model_copy(update={"learning": learning, "gate": gate})
    fast = stream.writer.tree.head
    order = stream.improve()
    assert order is not None
    assert stream.writer.tree.head == fast, "the floor stays"
    (refusal,) = stream.writer.tree.refusals
    assert "not above" in refusal.reason or "not finite" in refusal.reason
    assert stream.improve() is None
    assert stream.writer.ledger.tasks["task-0002"].refusals == 0, "the task itself is learnt"
    stream.config = stream.config.model_copy(update={"gate": gate.model_copy(update={"enabled": False})})
    stream.land("three", CATEGORIES[6:9])
    assert stream.learn().kind == "head"


def test_after_a_rollback_under_the_trunk_before_it_is_given_up(tmp_path: Path) -> None:
    stream = distilled(tmp_path)
    order = stream.later()
    assert order is not None
    _, base, fast = stream.writer.tree.versions
    stream.writer.move_head(base, "rollback", skip_abandoned=True)
    assert not stream.stages.is_current(order.version_id)
    assert stream.later() is None
    stream.writer.move_head(fast, "roll-forward")
    again = stream.later()
    assert again is not None
    assert again.version_id == order.version_id


def test_rolled_back_before_the_move_everything_is_as_it_was(tmp_path: Path) -> None:
    stream = distilled(tmp_path)
    store, fast = stream.writer.store, stream.writer.tree.head
    before = GallerySnapshot.load(store)
    stream.improve()
    stream.writer.move_head(fast, "rollback")
    after = GallerySnapshot.load(store)
    query = np.random.default_rng(1).random((3, store.head_of(fast).dim), np.float32)
    found = [snapshot.search(query, fast, k=5) for snapshot in (before, after)]
    assert [[hit.item_id for hit in hits] for hits in found[0]] == [
        [hit.item_id for hit in hits] for hits in found[1]
    ]


def test_what_an_older_trunk_embedded_waits_for_no_trainer_that_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = distilled(tmp_path)
    order = stream.later()
    assert order is not None
    run = stream.run(order)
    stream.land("three", CATEGORIES[6:9])
    stream.stages.commit(run.finish())
    due = stream.stages.next_order()
    assert due is not None
    assert due.kind == "embed"
    monkeypatch.setattr(LaterStages, "moves_trunk", True)
    assert stream.learn().kind == "head"
    assert stream.sums_are_of_what_is_stored()
    names = [stream.writer.ledger.shards[shard].name for shard in mapped_shards(stream.writer.store)]
    assert names == ["one.parquet", "three.parquet"]


POINTS = [
    "stage.after_gallery",
    *(
        pytest.param(point, marks=pytest.mark.slow)
        for point in ("attempt.after", "artifact.after", "stage.before", "stage.after_versions")
    ),
]


def _improve(folder: Path, point: str) -> None:
    stream = distilled(folder)
    die_at(point)
    stream.improve()


@pytest.mark.parametrize("point", POINTS)
def test_killed_anywhere_a_trunk_is_moved_once(tmp_path: Path, point: str) -> None:
    assert is_killed(_improve, tmp_path, point)
    stream = Trunk(tmp_path, {"trunk": "distilled"})
    committed = len(stream.writer.tree.versions) == 4
    assert committed == (point == "stage.after_versions")
    if not committed:
        stream.improve()
    assert stream.improve() is None
    assert len(stream.writer.tree.versions) == 4
    assert len(stream.writer.ledger.later_attempts) == 1
    assert stream.sums_are_of_what_is_stored()
    rows = stream.writer.store.gallery_rows(vectors=False)
    assert rows["version"].to_pylist().count(stream.writer.tree.head) == 30
