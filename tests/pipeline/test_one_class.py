"""Where a head remains to be solved, one new class of one image is a task; a trunk from nothing wants more."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_odml.ingest.boundary import BoundaryPolicy
from stream_odml.pipeline.stages import relearn
from stream_odml.store.unlearnt import unlearnt_tasks
from tests.pipeline.trunk_stream import CATEGORIES, Trunk

ALL = {"evaluation": {"held_out": 0.0}}


def one_image(number: int) -> list:  # type: ignore[type-arg]
    return [CATEGORIES[number]._replace(images=CATEGORIES[number].images[:1])]


def test_one_class_of_one_image_is_learnt(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"}, **ALL)
    stream.land("base", CATEGORIES[:3])
    # Closed behind a task that will train the trunk, which is not there yet.
    stream.land("waits", one_image(3))
    assert stream.learn().kind == "trunk"
    assert stream.learn().kind == "embed"
    stream.land("later", one_image(4))
    assert stream.learn().kind == "head"
    store = stream.writer.store
    assert store.tree.learnt() == {"task-0001", "task-0002", "task-0003"}
    head = store.head_of(store.tree.head)
    assert {CATEGORIES[number].class_name for number in (3, 4)} <= set(head.names)
    assert stream.sums_are_of_what_is_stored()
    assert stream.improve() is None, "two classes, but of one image each: these cannot move a trunk"
    stream.land("more", CATEGORIES[5:7])
    assert stream.learn().kind == "head"
    order = stream.improve()
    assert order is not None
    assert order.tasks == ("task-0002", "task-0003", "task-0004")


def test_a_trunk_that_starts_from_nothing_wants_two_classes_of_two_images(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, **ALL)
    stream.land("alone", one_image(0))
    store = stream.writer.store
    assert store.ledger.tasks["task-0001"].skipped == "1 images of 1 classes: nothing to learn"
    assert stream.stages.next_order() is None
    with pytest.raises(ValueError, match="land more images, two classes of two images at least"):
        relearn(stream.writer, "task-0001", anyway=False)
    stream.land("base", CATEGORIES[1:4])
    assert stream.learn().task == "task-0002"
    relearn(stream.writer, "task-0001", anyway=False)
    assert stream.learn().task == "task-0001"
    assert store.tree.learnt() == {"task-0001", "task-0002"}


def test_a_class_behind_a_base_that_is_skipped_is_skipped_with_its_reason(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, **ALL)
    stream.land("base", CATEGORIES[:3])
    stream.land("waits", one_image(3))
    stream.writer.skip_task("task-0001", "refused 2 times")
    assert stream.stages.next_order() is None
    store = stream.writer.store
    (_, waits) = unlearnt_tasks(store.ledger, store.tree)
    assert waits.reason == "1 images of 1 classes, and no trunk was learnt yet: nothing to learn"
    assert "land more images" in waits.remedy


def test_a_boundary_by_count_closes_for_a_single_new_class(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, **ALL)
    stream.land("base", CATEGORIES[:3])
    stream.stages._policy = BoundaryPolicy(new_classes=1, images=None, age_s=None)
    stream.land_open("single", one_image(3))
    assert len(stream.writer.store.ledger.tasks) == 2
    stream.land_open("again", CATEGORIES[3:4])
    assert len(stream.writer.store.ledger.tasks) == 2, "its class is known"
    assert stream.stages.explain()[1:] == ["new classes: 0 of 1"]


def test_vectors_and_kept_weights_need_no_base(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, **ALL)
    stream.stages._learns_trunk = False
    stream.land("first", one_image(0))
    assert stream.learn().kind == "head"
