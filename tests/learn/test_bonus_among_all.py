"""The bonus of items of new classes, where one part compares all: what both kinds are found best by, or known ones can
spare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from stream_odml.learn import head_choice
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.head_choice import BONUSES_AMONG_ALL, COST, _bonus_among_all
from stream_odml.learn.head_folds import Recalls
from tests.learn.streams import stored, sums_of
from tests.learn.test_head_choice import along_a_quarter, chosen, union_recall

CLASSES = 120


@pytest.mark.parametrize(
    ("images", "twice", "seen"), [(12, 120, True), (24, 120, True), (4, 120, False), (4, 60, False)]
)
@pytest.mark.parametrize(("trained", "noise"), [(0, 1.0), (CLASSES, 0.5)])
def test_new_ones_have_what_serves_both_or_what_known_ones_can_spare(
    images: int, twice: int, seen: bool, trained: int, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Half of the images are learnt; of four images two, and of some classes one alone.
    monkeypatch.setattr(head_choice, "MAX_WHITENED", 0)
    h, label, names = along_a_quarter(CLASSES + 20, images, seed=1, noise=noise)
    place = np.arange(len(label)) % images
    learnt = np.flatnonzero((label < CLASSES) & (place % 2 == 0) & ((place == 0) | (label < twice)))
    of = [names[row] for row in learnt]
    picked = chosen(
        encode(h[learnt]),
        of,
        np.arange(len(learnt)),
        HeadSettings(dim=8),
        trained={name for name, c in zip(names, label, strict=True) if c < trained},
    )
    assert picked.knows_all
    assert (picked.bonus_among_all > 0) == seen
    known, new = union_recall(h, names, CLASSES, picked)
    without, new_without = union_recall(h, names, CLASSES, replace(picked, bonus_among_all=0.0))
    assert 0 <= without - known <= (COST if trained else new - new_without)
    assert new - new_without >= without - known


def test_classes_that_the_trunk_was_not_trained_on_tell_what_a_bonus_gives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those that it was trained on lie apart from all others and are found whatever the bonus is."""
    monkeypatch.setattr(head_choice, "MAX_WHITENED", 0)
    h, label, names = along_a_quarter(CLASSES + 20, 12, seed=1, noise=0.5)
    apart = label < 2 * CLASSES // 3
    h[apart, :8] = 5 + 3 * (h[apart, :8] - 5)
    learnt = np.flatnonzero((label < CLASSES) & (np.arange(len(label)) % 2 == 0))
    of, trained = [names[row] for row in learnt], set(np.array(names)[apart].tolist())
    codes, order = encode(h[learnt]), np.arange(len(learnt))
    by_untrained, by_all = (
        chosen(codes, of, order, HeadSettings(dim=8), trained=some) for some in (trained, set(of))
    )
    found, found_by_all = (union_recall(h, names, CLASSES, s) for s in (by_untrained, by_all))
    assert by_untrained.bonus_among_all > by_all.bonus_among_all
    assert harmonic(*found) > harmonic(*found_by_all) + 0.005
    assert found[1] > found_by_all[1]


def harmonic(known: float, new: float) -> float:
    return 2 * known * new / (known + new)


@dataclass
class Seen:
    """What a fold would tell."""

    known_b: NDArray[np.floating[Any]]
    new_b: NDArray[np.floating[Any]]
    asked: int = 200
    n_new: int = 6

    def recalls(self, s: HeadSettings, bonus_b: NDArray[np.float64]) -> Iterator[Recalls]:
        yield Recalls(self.asked, self.n_new, np.asarray(self.known_b), np.asarray(self.new_b))


SHARE = BONUSES_AMONG_ALL / BONUSES_AMONG_ALL.max()
FALLS, STEPS = 0.9 - 0.02 * SHARE, 0.9 - 0.02 * (BONUSES_AMONG_ALL > 0.1)
RISES = 0.5 + 0.3 * (BONUSES_AMONG_ALL >= 0.05)


def bonus(folds: list[Seen], untrained: Seen | None = None, earlier: HeadSettings | None = None) -> float:
    return _bonus_among_all(HeadSettings(), folds, untrained, earlier)  # type: ignore[arg-type]


def test_what_known_ones_can_spare_is_seen_by_enough_queries_and_beside_enough_new_classes() -> None:
    def spared(*known: NDArray[np.floating[Any]], **more: int) -> float:
        return bonus([Seen(known_b, RISES, **more) for known_b in known])

    assert spared(STEPS) == 0.1
    assert spared(FALLS) == 0.125
    assert spared(FALLS, STEPS) == 0.1  # up to there 0.004 in the mean, beyond it 0.014
    assert spared(np.full_like(FALLS, 0.9)) == 0.25
    assert spared(STEPS, asked=199) == spared(STEPS, n_new=5) == bonus([]) == 0
    assert spared(STEPS, STEPS, asked=100) == 0.1


def test_of_untrained_classes_the_bonus_is_the_least_by_which_both_kinds_are_found_best() -> None:
    spares = [Seen(0.9 - 0.2 * SHARE, RISES)]
    assert bonus(spares) == 0.01
    assert bonus(spares, Seen(0.9 - 0.4 * SHARE, RISES)) == 0.05
    assert bonus(spares, Seen(np.full_like(FALLS, 0.9), 0.5 + 0.3 * SHARE)) == 0.25
    # No less than what known ones can spare, which holds alone where too few tell more.
    nothing = np.zeros_like(RISES)
    for untrained in (
        Seen(0.9 - 0.4 * SHARE, np.full_like(RISES, 0.8)),
        Seen(nothing, nothing),
        Seen(0.9 - 0.4 * SHARE, RISES, n_new=5),
        Seen(0.9 - 0.4 * SHARE, RISES, asked=199),
    ):
        assert bonus(spares, untrained) == 0.01
    assert bonus([], Seen(0.9 - 0.4 * SHARE, RISES)) == 0.05


def test_a_stage_that_trained_the_trunk_on_all_leaves_no_less_than_before() -> None:
    spares, untrained = [Seen(0.9 - 0.2 * SHARE, RISES)], Seen(0.9 - 0.4 * SHARE, RISES)
    before = HeadSettings(knows_all=True, bonus_among_all=0.07)
    assert bonus(spares, None, before) == bonus([], None, before) == 0.07
    assert bonus([Seen(STEPS, RISES)], None, before) == 0.1
    assert bonus(spares, untrained, before) == 0.05
    assert bonus(spares, None, replace(before, knows_all=False)) == 0.01
    assert bonus(spares, None, replace(before, bonus_among_all=0.0)) == 0.01, "of an earlier release"


def test_a_head_that_was_stored_before_there_was_such_a_bonus_has_none() -> None:
    codes, names = stored(12, 6, 8)
    head = solve_head(
        sums_of(codes, names), HeadSettings(dim=4, knows_all=True, new_scale=0.7, new_bonus=0.3)
    )
    assert (head.new_scale, head.new_bonus) == (1.0, 0.0)
