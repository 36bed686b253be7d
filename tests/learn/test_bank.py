"""The class bank: births, forgetting, merging, bytes."""

from __future__ import annotations

import numpy as np
import pytest

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.packing import BadArtifact, Floats
from stream_odml.learn.settings import EmbedderSpec

RNG = np.random.default_rng(0)


def bank() -> ClassBank:
    means = np.array([[1.0, 0.0], [0.0, 3.0], [9.0, 9.0]])
    first = ClassBank.empty(2).with_classes(["a", "b", "none"], "v1", np.array([2, 3, 0]), means, means)
    return first.moved(np.array([[1.0, 1.0], [0.0, 1.0]]), "v2").with_classes(
        ["a"], "v2", np.array([6]), np.array([[5.0, 1.0]]), np.array([[1.0, 0.0]])
    )


def test_a_bank_holds_nothing_that_is_not_finite() -> None:
    good = np.ones((1, 2), np.float32)
    with pytest.raises(ValueError, match="mean that is not finite"):
        ClassBank.empty(2).with_classes(["a"], "v1", np.array([3]), good * np.nan, good)


def test_a_class_that_comes_again_gets_a_second_entry() -> None:
    assert bank().keys == [("a", "v1"), ("b", "v1"), ("a", "v2")]
    with pytest.raises(ValueError, match="different keys"):
        bank().with_classes(["a"], "v2", np.array([1]), np.ones((1, 2)), np.ones((1, 2)))


def test_forgetting_an_item_leaves_the_means_of_the_others() -> None:
    images = RNG.normal(size=(5, 2))
    full, without = images.mean(0)[None], images[1:].mean(0)[None]
    drift = np.array([[0.5, -0.5]])
    before = ClassBank.empty(2).with_classes(["a"], "v1", np.array([5]), full, full).moved(drift, "v2")
    after = before.forget_item("a", "v1", images[0])
    assert after.counts.tolist() == [4]
    assert after.origin_means == pytest.approx(without, rel=1e-5)
    assert after.means == pytest.approx(without + drift, rel=1e-5)
    assert after.directions == pytest.approx((without + drift) / np.linalg.norm(without + drift), rel=1e-5)
    assert before.counts.tolist() == [5]


def test_forgetting_an_item_takes_it_out_as_later_whitenings_left_it() -> None:
    images, drift = RNG.normal(size=(5, 2)), np.array([[0.5, -0.5]])
    W, again = np.array([[0.5, 0.1], [0.1, 2.0]]), np.array([[1.5, 0.0], [0.0, 0.8]])

    def bank_of(rows: Floats) -> ClassBank:
        mean = rows.mean(0)[None]
        created = ClassBank.empty(2).with_classes(["a"], "v1", np.array([len(rows)]), mean, mean)
        turned = created.moved(drift, "v2", W).with_classes(["b"], "v2", np.array([1]), drift, drift)
        return turned.moved(np.repeat(drift, 2, 0), "v3", again)

    after, never = bank_of(images).forget_item("a", "v1", images[0]), bank_of(images[1:])
    for name in ("counts", "origin_means", "means", "directions"):
        assert getattr(after, name) == pytest.approx(getattr(never, name), rel=1e-5)
    assert set(after.transforms) == {"v1", "v2"}
    stored = ClassBank.from_bytes(after.to_bytes())
    assert all(
        np.array_equal(stored.transforms[birth], after.transforms[birth]) for birth in after.transforms
    )
    assert set(stored.selected(np.array([1])).transforms) == {"v2"}


def test_forgetting_its_last_item_removes_the_entry() -> None:
    last = ClassBank.empty(2).with_classes(["a"], "v1", np.array([1]), np.ones((1, 2)), np.ones((1, 2)))
    assert len(last.forget_item("a", "v1", np.ones(2))) == 0
    assert last.forget_item("a", "v9", np.ones(2)) is last


def test_bytes_keep_every_bit() -> None:
    again = ClassBank.from_bytes(bank().to_bytes())
    assert (again.version, again.keys) == ("v2", bank().keys)
    for name in ("counts", "origin_means", "means", "directions"):
        assert np.array_equal(getattr(again, name), getattr(bank(), name))
    assert len(ClassBank.from_bytes(ClassBank.empty(EmbedderSpec().dim).to_bytes())) == 0


@pytest.mark.parametrize("damage", [b"", b"not safetensors at all", bank().to_bytes()[:-3]])
def test_damaged_bytes_say_so(damage: bytes) -> None:
    with pytest.raises(BadArtifact, match="no readable artifact"):
        ClassBank.from_bytes(damage)
