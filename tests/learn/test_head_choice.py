"""The choice of a head's settings: a function of the set of items, right where one answer is better by far."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_odml.learn import head_choice
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.head_choice import (
    COST,
    best_of,
    choose_head,
    sample_rows,
)
from stream_odml.learn.head_folds import FEW_CLASSES, folds_of
from stream_odml.learn.lift import Lift
from tests.learn.streams import made, stored, sums_of

Ints = NDArray[np.int64]


def chosen(
    features: FeatureCodes,
    names: list[str],
    order: Ints,
    settings: HeadSettings | None = None,
    earlier: HeadSettings | None = None,
    trained: Collection[str] = (),
) -> HeadSettings:
    """The choice of all items, in an order."""
    features, names = features[order], [names[row] for row in order.tolist()]
    keys = [f"item {row}" for row in order.tolist()]
    rows = sample_rows(keys, names)
    return choose_head(
        sums_of(features, names),
        features[rows],
        [names[row] for row in rows.tolist()],
        settings,
        earlier=earlier,
        trained=trained,
    )


def test_the_sample_is_a_function_of_the_set_of_items(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_choice, "MAX_CLASSES", 5)
    monkeypatch.setattr(head_choice, "MAX_ITEMS_PER_CLASS", 3)
    monkeypatch.setattr(head_choice, "MAX_OTHERS", 4)
    classes = [f"c{i % 12}" for i in range(60)] + ["single"]
    keys = [f"item {i}" for i in range(61)]
    rows = sample_rows(keys, classes)
    picked = [classes[row] for row in rows]
    assert len(set(rows.tolist())) == len(rows) == 5 * 3 + 4
    assert sorted(picked.count(name) for name in set(picked)) == [1] * 4 + [3] * 5
    order = np.random.default_rng(0).permutation(61)
    again = sample_rows([keys[i] for i in order], [classes[i] for i in order])
    assert [keys[order[row]] for row in again] == [keys[row] for row in rows]
    # What was erased leaves no trace: an item outside of the sample, nothing; one inside, another in its place.
    outside = next(i for i in range(61) if i not in rows and picked.count(classes[i]) > 1)
    rest = [i for i in range(61) if i != outside]
    assert [
        rest[r] for r in sample_rows([keys[i] for i in rest], [classes[i] for i in rest])
    ] == rows.tolist()
    assert len(sample_rows([], [])) == 0


def test_the_choice_does_not_depend_on_order() -> None:
    features, names = stored(16, 8, 24, noise=2.0)
    orders = [np.arange(128), np.random.default_rng(1).permutation(128)]
    first, second = (chosen(features, names, order) for order in orders)
    assert first == second
    assert first != HeadSettings()


def along_a_quarter(
    classes: int, images: int, seed: int, noise: float
) -> tuple[NDArray[np.float32], Ints, list[str]]:
    """Features [n, 32] whose classes differ along a quarter of the dimensions and their images along all; class
    numbers [n] and names."""
    random, dim = np.random.default_rng(seed), 32
    means = random.normal(size=(classes, dim)) * np.where(np.arange(dim) < 8, 1.5, 0.1)
    label = np.repeat(np.arange(classes), images)
    h = (5 + means[label] + noise * random.normal(size=(len(label), dim))).astype(np.float32)
    return h, label, [f"class {c:06d}" for c in label]


def union_recall(
    h: NDArray[np.float32], names: list[str], known: int, settings: HeadSettings
) -> tuple[float, float]:
    """Recall@1 of items of known classes that the head has not seen, and of new ones, in one gallery."""
    codes, label = encode(h), np.array([int(name[-6:]) for name in names])
    learnt = np.flatnonzero((label < known) & (np.arange(len(label)) % 2 == 0))
    of = [names[row] for row in learnt.tolist()]
    head = solve_head(sums_of(codes[learnt], of, settings.width), settings)
    rest = np.setdiff1d(np.arange(len(label)), learnt)
    known_q, own = label[rest] < known, np.arange(len(rest))
    a, b = head.known_part(codes[rest]), head.vectors_of_new(codes[rest])
    by_known = np.array([head.knows(names[row]) for row in rest.tolist()])
    similar = np.where(by_known[None], a @ a.T, head.new_scale * (b @ b.T) + head.new_bonus)
    similar[own, own] = -9
    hit = label[rest][similar.argmax(1)] == label[rest]
    return float(hit[known_q].mean()), float(hit[~known_q].mean())


def test_both_kinds_of_classes_are_found_in_one_gallery() -> None:
    h, names = made(40, 16, 48, noise=2.0)
    label = np.array([int(name[-6:]) for name in names])
    learnt = np.flatnonzero((label < 30) & (np.arange(len(label)) % 2 == 0))
    picked = chosen(encode(h[learnt]), [names[row] for row in learnt.tolist()], np.arange(len(learnt)))
    known, new = union_recall(h, names, 30, picked)
    # With a bonus beyond every cosine only what is new is found, with the opposite only what is known.
    all_new, all_known = (
        union_recall(h, names, 30, replace(picked, new_bonus=bonus)) for bonus in (3.0, -3.0)
    )
    assert known > 0.85 * all_known[0]
    assert new > 0.85 * all_new[1]
    assert all_known[1] == all_new[0] == 0


@pytest.mark.parametrize(("classes", "all_known"), [(20, False), (60, True)])
def test_of_more_classes_than_dimensions_the_known_part_finds_new_ones_too(
    classes: int, all_known: bool
) -> None:
    h, label, names = along_a_quarter(classes + 20, 12, seed=4, noise=1.0)
    learnt = np.flatnonzero((label < classes) & (np.arange(len(label)) % 2 == 0))
    of = [names[row] for row in learnt]
    picked = chosen(encode(h[learnt]), of, np.arange(len(learnt)), HeadSettings(dim=8))
    assert picked.knows_all == all_known
    if all_known:
        known, new = union_recall(h, names, classes, picked)
        known_by_both, new_by_both = union_recall(h, names, classes, replace(picked, knows_all=False))
        assert known >= known_by_both - COST
        assert new >= new_by_both + 0.05


def test_a_lift_is_taken_where_it_helps_alone() -> None:
    random = np.random.default_rng(0)
    label = np.repeat(np.arange(24), 16)
    angle = random.random(24)[label] * np.pi + random.normal(size=len(label)) * 0.02
    # Classes by the absolute value of a direction: no linear map tells them apart, random features do.
    sign = random.choice([-1, 1], len(label))
    h = np.stack([sign * np.cos(angle), sign * np.sin(angle), random.normal(size=len(label)) * 0.05], 1)
    names = [f"class {c:02d}" for c in label]
    features = encode(h.astype(np.float32))
    sums = ClassSums.of(Lift(3, 64, seed=1), features, names)
    assert choose_head(sums, features, names, HeadSettings(width=0)).width == 64
    linear, easy = stored(24, 16, 12, noise=1.0)
    plain = ClassSums.of(Lift(12, 8, seed=1), linear, easy)
    picked = choose_head(plain, linear, easy, HeadSettings(width=0))
    assert picked.width in (0, 8)
    assert solve_head(plain, picked).known_dim


def after_its_trunk_learnt(classes: int, new: int, each: int = 20) -> tuple[NDArray[np.float32], list[str]]:
    """Features of a trunk that was trained on `classes` alone: each has a direction to itself, and a class that comes
    later lies near one of them and differs from it in what they have in common."""
    random, dim = np.random.default_rng(0), 48
    means = np.zeros((classes + new, dim))
    means[:classes, :classes] = 4 * np.eye(classes)
    for late in range(classes, classes + new):
        means[late] = means[random.integers(classes)]
        means[late, classes:] = 0.5 * random.normal(size=dim - classes)
    label = np.repeat(np.arange(classes + new), each)
    h = 2 + means[label] + 0.3 * random.normal(size=(len(label), dim))
    return h.astype(np.float32), [f"class {c:06d}" for c in label]


@pytest.mark.parametrize("classes", [2, 3, 6, 12, 30])
def test_what_the_trunk_was_trained_on_hides_no_class_that_comes_later(classes: int) -> None:
    h, names = after_its_trunk_learnt(classes, 10)
    label = np.array([int(name[-6:]) for name in names])
    learnt = np.flatnonzero((label < classes) & (np.arange(len(label)) % 2 == 0))
    picked = chosen(encode(h[learnt]), [names[row] for row in learnt.tolist()], np.arange(len(learnt)))
    known, new = union_recall(h, names, classes, picked)
    whitened = union_recall(h, names, classes, replace(picked, discriminant=False))
    by_two_parts = union_recall(h, names, classes, HeadSettings())
    assert known >= whitened[0]
    assert new >= 0.95 * whitened[1]
    # With two parts and the default bonus one of the kinds is lost.
    assert min(by_two_parts) < 0.75 * min(whitened)


def test_many_items_keep_the_short_part(monkeypatch: pytest.MonkeyPatch) -> None:
    h, names = after_its_trunk_learnt(12, 0)
    monkeypatch.setattr(head_choice, "MAX_WHITENED", len(names) - 1)
    assert chosen(encode(h), names, np.arange(len(names))).discriminant
    monkeypatch.setattr(head_choice, "MAX_WHITENED", len(names))
    assert not chosen(encode(h), names, np.arange(len(names))).discriminant


def test_cosines_of_new_items_are_scaled_where_known_ones_are_all_near_one() -> None:
    """Half of the classes as the trunk was trained on them, half as it never saw them."""
    h, names = after_its_trunk_learnt(12, 22)
    label = np.array([int(name[-6:]) for name in names])
    learnt = np.flatnonzero((label < 24) & (np.arange(len(label)) % 2 == 0))
    picked = chosen(encode(h[learnt]), [names[row] for row in learnt.tolist()], np.arange(len(learnt)))
    known, new = union_recall(h, names, 24, picked)
    whitened = union_recall(h, names, 24, replace(picked, discriminant=False))
    assert known >= 0.97 * whitened[0]
    assert new >= 0.95 * whitened[1]


def test_classes_that_the_trunk_never_saw_tell_what_new_items_need() -> None:
    """Images of a class are near each other under the trunk that was trained on it, and of no other: told by such
    classes, new items need next to nothing."""
    trained, later, coming = 32, 12, 12
    known = trained + later
    worse: dict[bool, list[float]] = {True: [], False: []}
    for seed in range(5):
        random, dim = np.random.default_rng(seed), 96
        means = np.zeros((known + coming, dim))
        means[:trained, :trained] = 4 * np.eye(trained)
        means[trained:] = means[random.integers(trained, size=later + coming)] / 2
        means[trained:, trained:] = 0.4 * random.normal(size=(later + coming, dim - trained))
        label = np.repeat(np.arange(known + coming), 24)
        spread = np.where(label < trained, 0.3, 0.7)[:, None]
        h = (4 + means[label] + spread * random.normal(size=(len(label), dim))).astype(np.float32)
        names = [f"class {c:06d}" for c in label]
        learnt = np.flatnonzero((label < known) & (np.arange(len(label)) % 2 == 0))
        of = [names[row] for row in learnt.tolist()]
        for is_known_which in worse:
            seen = {name for name in of if int(name[-6:]) < trained or not is_known_which}
            picked = chosen(encode(h[learnt]), of, np.arange(len(of)), earlier=HeadSettings(), trained=seen)
            assert picked.discriminant
            worse[is_known_which].append(min(union_recall(h, names, known, picked)))
    assert np.mean(worse[True]) >= np.mean(worse[False]) + 0.05


@pytest.mark.parametrize(("classes", "single"), [(20, 0), (20, 30), (32, 0)])
def test_new_items_compete_as_where_a_quarter_of_the_classes_is_new(classes: int, single: int) -> None:
    """Of few classes two are left out at a time, and all others stand for new ones; of one item none can be."""
    features, names = stored(classes, 8, 40, noise=1.5)
    if single:
        alone, of = stored(single, 1, 40, noise=1.5, first=classes)
        features, names = FeatureCodes.joined([features, alone]), names + of
    fold = next(folds_of(sums_of(features, names), features, names, None))
    gallery, _ = fold.both(HeadSettings())
    quarter = gallery.of_left_out()
    new_q = ~gallery.is_known_q
    if classes < FEW_CLASSES:
        assert quarter.new is gallery.new
        return
    assert fold.n_new == classes // 4
    assert (quarter.new[0][~new_q] <= gallery.new[0][~new_q]).all()  # fewer compete
    assert (quarter.new[0][~new_q] < gallery.new[0][~new_q]).mean() > 0.3
    assert quarter.new[1][new_q].mean() >= gallery.new[1][new_q].mean()
    assert quarter.new[1][~new_q].max() == 0  # none of them is of a known class


@pytest.mark.parametrize(("classes", "each"), [(0, 1), (1, 9), (2, 9), (3, 1), (9, 1), (4, 2), (5, 2)])
def test_too_few_classes_or_items_leave_all_to_whitening(classes: int, each: int) -> None:
    features, names = stored(max(classes, 1), each, 12)
    n = classes * each
    settings = HeadSettings(new_bonus=0.3)
    found = chosen(features[:n], names[:n], np.arange(n), settings)
    assert found == replace(settings, discriminant=False) or classes > 4
    assert np.isfinite(found.new_bonus)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_too_few_classes_under_a_lift_are_left_to_whitening_too(classes: int) -> None:
    """No bonus can be measured, and by the default one of the two kinds is lost."""
    h, names = after_its_trunk_learnt(classes, 10)
    label = np.array([int(name[-6:]) for name in names])
    learnt = np.flatnonzero((label < classes) & (np.arange(len(label)) % 2 == 0))
    codes, of = encode(h[learnt]), [names[row] for row in learnt.tolist()]
    picked = choose_head(sums_of(codes, of, width=24), codes, of, HeadSettings(width=24))
    assert picked == HeadSettings(width=24, discriminant=False)
    two_parts, whitened = (
        union_recall(h, names, classes, settings) for settings in (HeadSettings(width=24), picked)
    )
    assert min(two_parts) < 0.75 * min(whitened)


def round_classes(seed: int) -> tuple[FeatureCodes, list[str]]:
    """Few round classes in many dimensions: what a discriminant finds more or less of a few queries is luck."""
    random = np.random.default_rng(seed)
    label = np.repeat(np.arange(12), 6)
    h = 2 + random.normal(size=(12, 64))[label] + 0.9 * random.normal(size=(len(label), 64))
    return encode(h.astype(np.float32)), [f"{c:04d}" for c in label]


def test_a_discriminant_that_finds_as_much_as_whitening_is_not_taken_by_chance() -> None:
    found = [round_classes(seed) for seed in range(12)]
    taken = [chosen(features, names, np.arange(len(names))).discriminant for features, names in found]
    assert sum(taken) <= 1


def test_a_discriminant_that_is_there_stays_where_left_out_items_speak_for_whitening() -> None:
    """A trunk that was trained on the very classes lets whitening find them all."""
    features, names = stored(24, 16, 48, noise=1.0)
    one = HeadSettings(dim=1)  # 24 classes along one direction
    kept, anew = (
        chosen(features, names, np.arange(len(names)), one, earlier=replace(one, discriminant=keeps))
        for keeps in (True, False)
    )
    assert kept.discriminant
    # Scale and bonus are chosen anew where two parts compare.
    assert kept == replace(anew, discriminant=True, new_scale=kept.new_scale, new_bonus=kept.new_bonus)


@pytest.mark.parametrize("each", [2, 3, 4])
def test_what_has_nothing_to_find_is_no_miss(each: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of classes of so few images one is left out, alone of its class among those left out."""
    seen: list[float] = []

    def watched(
        tried: list[HeadSettings], hits: Callable[[HeadSettings], NDArray[np.float64]]
    ) -> HeadSettings:
        seen.append(float(hits(tried[0]).mean()))
        return best_of(tried, hits)

    monkeypatch.setattr(head_choice, "best_of", watched)
    features, names = stored(40, each, 48, noise=0.05)
    found = chosen(features, names, np.arange(len(names)))
    assert seen == [1.0, 1.0, 1.0], (
        "every query finds its class: shrinkage, weighing and the new part's shrinkage"
    )
    assert np.isfinite(found.new_bonus)


def test_identical_images_leave_a_finite_choice() -> None:
    alike = encode(np.repeat(np.random.default_rng(0).random((1, 10), np.float32), 64, axis=0))
    names = [f"{i // 8}" for i in range(64)]
    found = chosen(alike, names, np.arange(64))
    assert np.isfinite(found.new_bonus)
    solve_head(sums_of(alike, names), found)


@pytest.mark.parametrize(
    ("more", "less", "width"), [(1, 0, 64), (4, 3, 64), (20, 16, 64), (12, 0, 0), (30, 6, 0)]
)
def test_another_setting_is_chosen_for_more_than_chance(more: int, less: int, width: int) -> None:
    first = np.repeat([0.0, 1.0], [40, 140])
    other = first.copy()
    other[:more], other[40 : 40 + less] = 1.0, 0.0
    hits = {64: first, 0: other}
    assert best_of([HeadSettings(width=64), HeadSettings(width=0)], lambda s: hits[s.width]).width == width


def test_as_many_classes_as_items_are_asked_for() -> None:
    features, names = encode(np.eye(4, dtype=np.float32)), ["a", "a", "b", "b"]
    sums = ClassSums.of(Lift(4), features, names)
    with pytest.raises(ValueError, match="3 keys with 4 classes"):
        sample_rows(["1", "2", "3"], names)
    with pytest.raises(ValueError, match="3 classes of 4 sampled items"):
        choose_head(sums, features, names[:3])
