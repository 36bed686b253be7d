"""When a task closes, told as little stories of shards that wait."""

from __future__ import annotations

import random

import pytest

from stream_odml.ingest.boundary import BoundaryPolicy, Closure, WaitingShard

COUNTS = BoundaryPolicy(new_classes=4, images=None, age_s=None)


def shard(name: str, at: float = 0.0, **counts: int) -> WaitingShard:
    return WaitingShard(f"{name}-id", name, counts, at)


def marker(task: str, *shards: str) -> WaitingShard:
    return WaitingShard(f"{task}-id", f"{task}.task.json", {}, 0.0, task, True, shards)


def ids(closure: Closure | None) -> tuple[str, ...] | None:
    return None if closure is None else tuple(name.removesuffix("-id") for name in closure.shard_ids)


def test_new_classes_close_the_shortest_prefix() -> None:
    waiting = [shard("s1", a=5, b=5), shard("s2", a=5, c=1, old=9), shard("s3", d=2), shard("s4", e=9)]
    assert ids(COUNTS.decide(waiting, {"old"}, 0)) == ("s1", "s2", "s3")
    assert COUNTS.decide(waiting[:2], {"old"}, 0) is None
    assert COUNTS.decide(waiting[:3], {"old", "a"}, 0) is None


def test_images_close() -> None:
    policy = BoundaryPolicy(new_classes=None, images=10, age_s=None)
    closure = policy.decide([shard("s1", a=5, b=4), shard("s2", a=1), shard("s3", a=1)], {"a", "b"}, 0)
    assert ids(closure) == ("s1", "s2")
    assert closure is not None
    assert (closure.images, closure.classes, closure.trainable) == (10, 2, True)
    assert "images: 10 of 10" in closure.reason


def test_age_closes_everything_that_waits() -> None:
    policy = BoundaryPolicy(new_classes=None, images=None, age_s=60)
    waiting = [shard("s1", at=100, a=2), shard("s2", at=150, b=2)]
    assert policy.decide(waiting, (), 159) is None
    assert ids(policy.decide(waiting, (), 160)) == ("s1", "s2")


@pytest.mark.parametrize("counts", [{"a": 500}, {"a": 500, "b": 1}, {}])
def test_what_teaches_nothing_waits_for_more(counts: dict[str, int]) -> None:
    policy = BoundaryPolicy(new_classes=1, images=1, age_s=1)
    waiting = [WaitingShard("s1-id", "s1", counts, 0)]
    assert policy.decide(waiting, (), 1e9) is None
    assert any("held back" in line for line in policy.explain(waiting, (), 1e9))
    assert ids(policy.decide([*waiting, shard("s2", a=2, b=2)], (), 1e9)) == ("s1", "s2")


def test_where_a_head_remains_to_be_solved_one_image_is_a_task() -> None:
    policy = BoundaryPolicy(new_classes=1, images=None, age_s=60)
    closure = policy.decide([shard("s1", a=1)], (), 0, any_image=True)
    assert closure is not None
    assert (ids(closure), closure.trainable, closure.images) == (("s1",), True, 1)
    known = [shard("s1", at=0, a=1)]
    assert policy.decide(known, {"a"}, 59, any_image=True) is None
    assert ids(policy.decide(known, {"a"}, 60, any_image=True)) == ("s1",)
    empty = [shard("s1", a=0)]
    assert policy.decide(empty, (), 1e9, any_image=True) is None
    lines = policy.explain(empty, (), 1e9, any_image=True)
    assert lines[-1] == "held back: no image to learn from; needs more"
    closure = policy.decide([shard("s1", a=0), shard("s2", b=1), marker("one")], (), 0, any_image=True)
    assert closure is not None
    assert closure.trainable


def test_a_manifest_closes_what_landed_before_it() -> None:
    waiting = [shard("s1", a=2, b=2), marker("spring"), shard("s2", c=2)]
    closure = COUNTS.decide(waiting, (), 0)
    assert ids(closure) == ("s1", "spring")
    assert closure is not None
    assert closure.trainable
    assert closure.task == "spring"


def test_a_manifest_forces_a_task_that_cannot_be_learnt() -> None:
    closure = COUNTS.decide([shard("s1", a=7), marker("one class")], (), 0)
    assert ids(closure) == ("s1", "one class")
    assert closure is not None
    assert not closure.trainable


def test_a_manifest_that_names_shards_waits_for_them_and_takes_only_them() -> None:
    waiting = [shard("other", x=2), shard("s1", a=2), marker("spring", "s1", "s2")]
    assert COUNTS.decide(waiting, (), 0) is None
    assert any("spring" in line and "s2" in line for line in COUNTS.explain(waiting, (), 0))
    closure = COUNTS.decide([*waiting, shard("s2", b=2)], (), 0)
    assert ids(closure) == ("s1", "spring.task.json".removesuffix(".task.json"), "s2")


def test_folder_shards_of_one_task_close_with_their_last() -> None:
    mine = [WaitingShard(f"m{n}-id", f"m{n}", {"a": 2, "b": 2}, 0, "spring", n == 1) for n in range(2)]
    assert ids(COUNTS.decide([mine[0], shard("other", x=2), mine[1]], (), 0)) == ("m0", "m1")


def test_whenever_one_asks_the_tasks_are_the_same() -> None:
    policy = BoundaryPolicy(new_classes=6, images=40, age_s=None)
    dice = random.Random(4)
    landed = [
        marker(f"t{n}")
        if dice.random() < 0.1
        else WaitingShard(f"s{n}-id", f"s{n}", {dice.choice("abcdefgh"): dice.randint(1, 9)}, 0)
        for n in range(200)
    ]

    def tasks(asks: set[int]) -> list[tuple[str, ...] | None]:
        waiting: list[WaitingShard] = []
        known: set[str] = set()
        closed = []
        for number, new in enumerate(landed):
            waiting.append(new)
            while number in asks and (closure := policy.decide(waiting, known, 0)):
                closed.append(ids(closure))
                members = set(closure.shard_ids)
                known |= {name for s in waiting if s.shard_id in members for name in s.counts}
                waiting = [s for s in waiting if s.shard_id not in members]
        return closed

    always = tasks(set(range(200)))
    assert len(always) > 10
    assert tasks({199}) == always
    assert tasks(set(dice.sample(range(199), 20)) | {199}) == always


def test_explains_itself() -> None:
    policy = BoundaryPolicy(new_classes=4, images=100, age_s=60)
    lines = policy.explain([shard("s1", a=3, b=2), shard("s2", old=5)], {"old"}, 10)
    assert lines == [
        "2 shards with 10 images of 3 classes wait",
        "new classes: 2 of 4",
        "images: 10 of 100",
        "age of the oldest: 10 s of 60 s",
    ]


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"boundary\.images is 0"):
        BoundaryPolicy(images=0)
    with pytest.raises(ValueError, match="set at least one"):
        BoundaryPolicy(None, None, None, manifest=False)
