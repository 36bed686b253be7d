"""Sums by class: a naive loop as oracle, and what order, ranks, repetition and erasure must leave as it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.lift import Lift
from stream_odml.learn.packing import BadArtifact
from tests.learn.streams import made, stored, sums_of


def same(a: ClassSums, b: ClassSums) -> bool:
    """Whether two sums are equal to the last bit."""
    return (
        (a.lift, a.names) == (b.lift, b.names)
        and np.array_equal(a.counts_C, b.counts_C)
        and np.array_equal(a.sums_CE, b.sums_CE)
        and np.array_equal(a.products_EE, b.products_EE)
    )


def rows_of(names: list[str], rows: np.ndarray) -> list[str]:
    return [names[i] for i in rows]


def test_it_is_what_a_loop_over_images_finds() -> None:
    features, names = stored(4, 5, 6)
    sums = sums_of(features, names, width=3)
    phi = sums.lift.apply(features.decode()).astype(np.float64)
    within, between = np.zeros((9, 9)), np.zeros((9, 9))
    for c, name in enumerate(sums.names):
        own = [row for row, other in zip(phi, names, strict=True) if other == name]
        mean = sum(own) / len(own)
        assert sums.counts_C[c] == len(own)
        assert np.allclose(sums.class_means()[c], mean, atol=1e-4)
        within += sum(np.outer(row - mean, row - mean) for row in own)
        between += len(own) * np.outer(mean - phi.mean(0), mean - phi.mean(0))
    assert np.allclose(sums.mean(), phi.mean(0), atol=1e-4)
    for found, expected in zip(sums.scatter(), (within, between), strict=True):
        assert np.allclose(found, expected, atol=1e-3 * np.abs(expected).max())


@pytest.mark.parametrize("seed", range(5))
def test_order_shards_and_ranks_do_not_matter(seed: int) -> None:
    features, names = stored(11, 9, 24, seed)
    whole, random = sums_of(features, names, width=8), np.random.default_rng(seed)
    order = random.permutation(len(names))
    cuts = np.sort(random.integers(0, len(names), random.integers(1, 9)))
    parts = [
        sums_of(features[rows], rows_of(names, rows), width=8)
        for rows in np.split(order, cuts)  # some of them empty
    ]
    assert same(ClassSums.empty(whole.lift).plus(*parts), whole)
    assert same(parts[0].plus(*parts[1:]), parts[-1].plus(*parts[:-1]))
    nested = parts[0]
    for part in parts[1:]:
        nested = part.plus(nested)
    assert same(nested, whole)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_taken_out_was_never_there(seed: int) -> None:
    features, names = stored(7, 6, 16, seed)
    random = np.random.default_rng(seed)
    out = random.random(len(names)) < 0.3  # some items of some classes
    out[np.asarray(names) == names[0]] = True  # one whole class
    gone, left = np.flatnonzero(out), np.flatnonzero(~out)
    never = sums_of(features[left], rows_of(names, left))
    after = sums_of(features, names).minus(sums_of(features[gone], rows_of(names, gone)))
    assert same(after, never)
    assert names[0] not in after.names
    assert len(after.minus(never)) == 0
    assert same(after.minus(never), ClassSums.empty(never.lift))


def test_a_class_that_comes_again_is_one_class() -> None:
    features, names = stored(3, 8, 10)
    first, again = np.arange(0, 24, 2), np.arange(1, 24, 2)
    sums = sums_of(features[first], rows_of(names, first)).plus(
        sums_of(features[again], rows_of(names, again))
    )
    assert sums.names == ("class 000000", "class 000001", "class 000002")
    assert same(sums, sums_of(features, names))


def test_items_that_were_not_added_cannot_be_taken_out() -> None:
    features, names = stored(3, 4, 10)
    sums = sums_of(features, names)
    others, _ = stored(3, 4, 10, seed=9)
    with pytest.raises(ValueError, match="'class 000000' is empty, but its sum is not zero"):
        sums.minus(sums_of(others[0:4], names[:4]))
    with pytest.raises(ValueError, match="4 more items of class 'class 000000' taken out"):
        sums.minus(sums_of(features[0:4], names[:4]).plus(sums_of(features[0:4], names[:4])))
    with pytest.raises(ValueError, match="class 'other' is not in the sums"):
        sums.minus(sums_of(features[0:1], ["other"]))
    with pytest.raises(ValueError, match="one trunk and lift"):
        sums.plus(sums_of(features, names, width=4))
    with pytest.raises(ValueError, match="3 classes of 12 items"):
        sums_of(features, names[:3])


def test_a_narrower_lift_has_the_same_numbers() -> None:
    features, names = stored(5, 4, 12)
    wide = ClassSums.of(Lift(12, 20, seed=5), features, names)
    assert same(wide.narrowed(7), ClassSums.of(Lift(12, 7, seed=5), features, names))
    assert same(wide.narrowed(20), wide)
    with pytest.raises(ValueError, match="a lift of 21 from sums of 20"):
        wide.narrowed(21)


def test_a_class_without_its_mean_leaves_its_scatter() -> None:
    features, names = stored(5, 6, 8)
    sums = sums_of(features, names)
    left = sums.without_means([sums.names[1], sums.names[4], "never there"])
    assert left.names == (sums.names[0], sums.names[2], sums.names[3])
    assert np.allclose(left.scatter()[0], sums.scatter()[0])
    others = [i for i, name in enumerate(names) if name in left.names]
    assert np.allclose(
        left.scatter()[1], sums_of(features[np.array(others)], rows_of(names, np.array(others))).scatter()[1]
    )


def test_bytes_hold_everything_and_damage_is_reported() -> None:
    features, names = stored(4, 5, 12)
    for sums in (sums_of(features, names, width=6), sums_of(features[0:0], [])):
        data = sums.to_bytes()
        assert same(ClassSums.from_bytes(data), sums)
        assert sums.to_bytes() == data
    with pytest.raises(BadArtifact):
        ClassSums.from_bytes(data[:-9])


def test_a_hundred_thousand_classes_need_memory_of_classes_times_dimension_alone() -> None:
    C, D = 100_000, 16
    codes = np.random.default_rng(0).integers(-127, 128, (2 * C, D)).astype(np.int8)
    names = [f"{c:06d}" for c in range(C)] * 2
    sums = sums_of(FeatureCodes(codes, np.ones(2 * C, np.float32)), names)
    assert len(sums) == C
    assert (sums.counts_C == 2).all()
    within, between = sums.scatter()
    assert np.isclose(
        np.trace(within) + np.trace(between), 2 * C - 2 * C * np.square(sums.mean()).sum(), rtol=1e-4
    )
    assert len(sums.to_bytes()) < C * D * 4 + C * 8 + C * 12 + 10_000
    rest = sums.minus(sums_of(FeatureCodes(codes[5:6], np.ones(1, np.float32)), ["000005"]))
    assert rest.counts_C[5] == 1


def test_sums_that_do_not_fit_are_refused() -> None:
    h, names = made(2, 2, 4)
    assert len(h) == len(names)
    with pytest.raises(ValueError, match="sorted"):
        ClassSums(Lift(2), ("b", "a"), np.ones(2, np.int64), np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match="0 items"):
        ClassSums(Lift(2), ("a",), np.zeros(1, np.int64), np.zeros((1, 2)), np.zeros((2, 2)))


def test_another_image_is_seen_among_very_many_of_other_classes() -> None:
    """The proof of an erasure compares sums: its tolerance must not grow with the items of other classes."""
    features, _ = stored(4, 5, 6)
    few, other = sums_of(features[0:6], ["a"] * 6), sums_of(features[1:7], ["a"] * 6)
    many = replace(few, names=("b",), counts_C=np.array([10_000_000]))
    assert few.plus(many).equals(few.plus(many))
    assert not few.plus(many).equals(other.plus(many))
    # The same sums of two images, of other two by their products: 2^30 in ten million times as much.
    x, y = (features.codes_nD[row].astype(np.float64) for row in (0, 1))
    both = few.plus(many)
    swapped = np.outer(x, y) / np.linalg.norm(x) / np.linalg.norm(y) * 2.0**30
    assert not both.equals(replace(both, products_EE=both.products_EE + np.rint(swapped + swapped.T)))
    assert both.equals(replace(both, products_EE=both.products_EE + 16))  # what rounding leaves of so many
    assert not few.equals(replace(few, products_EE=few.products_EE + 1))
