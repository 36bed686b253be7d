"""The choice of a head's settings by classes and items left out of its solution, on stored features alone.

A choice is a function of the set of items stored when it is made: the sample is drawn by hashes of names, so the order
in which they came leaves no trace in it. A head keeps its choice until classes or items have changed by
`choice_growth`: until then its settings, a handful of numbers and no feature, may be those that items chose which have
been erased since.
"""

# n rows of the sample   q queries   E = D + M entries of φ

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.head_folds import (
    LARGE_DIM,
    Both,
    Fold,
    Indices,
    Recalls,
    fold_of_untrained,
    folds_of,
    mean,
    mean_of_both,
    name_hash,
)
from stream_odml.learn.lift import Float64s
from stream_odml.learn.weighing import Weighing

SHRINKAGES, NEW_SHRINKAGES = (0.8, 0.95), (0.8, 0.5)
"""Tried of the known and of the new part, the default first."""
OF_FEW: tuple[Weighing, ...] = ("ridge", "equal")
OF_MANY: tuple[Weighing, ...] = ("equal", "posterior")
"""Tried of fewer classes than dimensions, and of more."""
LAYERS = (0.0, 0.5)
"""Tried of the layer that the trunk was trained behind, where the known part compares all."""
MARGIN, STANDARD_ERRORS = 0.005, 2.0
"""Another than the default has to be better by so much recall, and by so many standard errors of the difference: of 200
queries one or two more are found by chance, and a lift given up for them has cost 0.08 of recall."""
MAX_WHITENED = 100_000
"""Items up to which whitening may serve all: a searcher then holds D values an item, where the known part has 128."""
NEW_SCALES = (1.0, 0.7, 0.5, 0.35)
"""Tried of the cosine of new items. Of those that serve as well the smallest: it relies least on new items, whose
scores a trunk overstates for classes that it was trained on, and all that can be left out may be of such classes."""
MAX_CLASSES, MAX_ITEMS_PER_CLASS, MAX_OTHERS = 192, 16, 2048
"""Of the sample: so many classes with so many items, and one item of so many other classes, which only distract."""
BONUSES = np.linspace(-0.25, 1.0, 126)
BONUSES_AMONG_ALL, COST, MIN_ASKED, MIN_NEW, MIN_NEW_QUERIES = np.linspace(0.0, 0.25, 51), 0.01, 200, 6, 100
"""Where the known part compares all items, new ones have the largest bonus that takes no more recall than COST from
known classes, where a quarter of the classes is new. Or the one that is best for both kinds, if that is more: told by
left out classes that the trunk was not trained on, as it finds others whatever the bonus is. Either is seen by so many
queries of each kind at least, in all galleries, and beside so many new classes. Where two parts compare,
MIN_NEW_QUERIES items left out of such classes are enough."""


def sample_rows(keys: Sequence[str], classes: Sequence[str]) -> Indices:
    """Return the rows of a bounded sample of items, by their keys (any names that are unique) and classes. Sorted by
    hash, so that the sample of a set of items is the same whatever their order."""
    if len(keys) != len(classes):
        raise ValueError(f"{len(keys)} keys with {len(classes)} classes; expected one of each for an item")
    counts = Counter(classes)
    in_order = sorted(counts, key=name_hash)
    whole = [name for name in in_order if counts[name] > 1][:MAX_CLASSES]
    others = set(in_order) - set(whole)
    wanted = {
        **dict.fromkeys(whole, MAX_ITEMS_PER_CLASS),
        **dict.fromkeys(sorted(others, key=name_hash)[:MAX_OTHERS], 1),
    }
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(classes):
        if name in wanted:
            rows_of[name].append(row)
    hash_of = {row: name_hash(keys[row]) for rows in rows_of.values() for row in rows}
    chosen = [sorted(rows_of[name], key=hash_of.__getitem__)[:most] for name, most in wanted.items()]
    return np.array([row for rows in chosen for row in rows], np.int64)


def choose_head(
    sums: ClassSums,
    sample: FeatureCodes,
    classes: Sequence[str],
    settings: HeadSettings | None = None,
    *,
    earlier: HeadSettings | None = None,
    layer_lD: Float64s | None = None,
    trained: Collection[str] = (),
) -> HeadSettings:
    """Return `settings` with the shrinkages, lift, weighing and bonus of new items that serve what is left out best.

    `sums`: of all learnt items, with the widest lift that may be used. `sample`: rows of `sample_rows`, every
    one of which is in the sums. Lift, shrinkage and weighing by recall of known items left out, among known ones;
    `new_shrinkage` by recall of classes left out, among all; `new_scale` and `new_bonus` by both in one gallery, as
    large a share as can be of what one part for all would reach, for the kind that is worse off, where only classes
    left out are new: ones that the trunk was not `trained` on, once there are enough. Of more classes than dimensions
    the known part compares all items (`knows_all`) where it reaches a larger share of both kinds, and has
    the layer that the trunk was trained behind (`layer_lD`) where that finds more; once it does, until it finds less.
    New items then have the largest `bonus_among_all` that known ones can spare, or the one by which both kinds are
    found best, if that is more, judged by classes that the trunk was not `trained` on. A stage that trained it on all
    leaves no less than the head before had (`earlier`).

    Of up to MAX_WHITENED items all are left to whitening, as new ones are, unless the discriminant is seen to find
    more: a trunk that was trained on a few classes alone puts every item near one of them, and directions in which
    they differ then tell new items from known ones no more. Not where there is a lift, which whitening does without.
    Where the head before had a discriminant (`earlier`) it stays: of items that a trunk has been trained on
    either part finds nearly all, which tells nothing of items to come.

    Where too few classes or items can be left out, the settings stay, and up to MAX_WHITENED items are left to
    whitening, with a lift too: two parts would be compared by a bonus that nothing has measured, which loses one of
    the kinds.
    """
    if len(sample) != len(classes):
        raise ValueError(f"{len(classes)} classes of {len(sample)} sampled items; expected one of each")
    s = settings or HeadSettings()
    folds = list(folds_of(sums, sample, classes, layer_lD))
    few = sums.n_items <= MAX_WHITENED
    if not folds:
        return replace(s, discriminant=s.discriminant and not few)
    first = folds[0]
    # Fewer directions than dimensions say little of others, whatever a trunk shows that was trained on those left out.
    many = len(first.sums) > sums.lift.dim
    s = _each_part(replace(s, knows_all=False, bonus_among_all=0.0), first, OF_MANY if many else OF_FEW)
    both = [fold.both(s) for fold in folds]
    scale, bonus, share = _best_scores(_telling(both))
    if many:
        knows_all = _share(both, lambda gallery: gallery.by_known_q) > share + MARGIN
        s = _with_layer(replace(s, knows_all=knows_all), first, earlier)
    if few and not sums.lift.width:
        keeps = earlier is not None and earlier.discriminant
        s = replace(s, discriminant=keeps or _pays(both, scale, bonus, share))
    s = replace(s, new_scale=scale, new_bonus=bonus)
    if not s.discriminant:
        return s
    asks = s.knows_all or sums.lift.out_dim <= LARGE_DIM
    untrained = fold_of_untrained(sums, sample, classes, layer_lD, trained) if asks else None
    if s.knows_all:
        return replace(s, bonus_among_all=_bonus_among_all(s, folds, untrained, earlier))
    return _with_scores_of_new(s, both, untrained)


def _with_layer(s: HeadSettings, fold: Fold, earlier: HeadSettings | None) -> HeadSettings:
    """Return settings with the layer where one part compares all and more is found by it; the one before stays until
    less is."""
    if not (s.knows_all and len(fold.solver.layer_lD)):
        return s
    layers = sorted(LAYERS, reverse=earlier is not None and earlier.layer > 0)
    return best_of([replace(s, layer=layer) for layer in layers], fold.all_hits)


def _each_part(s: HeadSettings, fold: Fold, weighings: Sequence[Weighing]) -> HeadSettings:
    """Return settings with what either part finds most by, each judged alone. `weighings`: the default first."""
    s = replace(s, weighing=weighings[0])
    if (width := fold.sums.lift.width) > 0:
        s = best_of([replace(s, width=tried) for tried in (width, 0)], fold.known_hits)
    s = best_of([replace(s, shrinkage=shrinkage) for shrinkage in SHRINKAGES], fold.known_hits)
    s = best_of([replace(s, weighing=weighing) for weighing in weighings], fold.known_hits)
    return best_of([replace(s, new_shrinkage=shrinkage) for shrinkage in NEW_SHRINKAGES], fold.new_hits)


def _with_scores_of_new(
    s: HeadSettings, both: list[tuple[Both, Both]], untrained: Fold | None
) -> HeadSettings:
    """Return settings with scale and bonus of new items where two parts compare, for a gallery of which only classes
    left out are new: those that the trunk was not trained on, once there are enough of them. Which parts there are was
    decided before, as if all were new."""
    if untrained is not None and untrained.n_new >= MIN_NEW:
        shown = [untrained.both(s)]
        if _telling(shown) and int((~shown[0][0].is_known_q).sum()) >= MIN_NEW_QUERIES:
            both = shown
    scale, bonus, _ = _best_scores([gallery.of_left_out() for gallery in _telling(both)])
    return replace(s, new_scale=scale, new_bonus=bonus)


def _best_scores(galleries: list[Both]) -> tuple[float, float, float]:
    """Return the smallest scale of those that serve as well as the best, its bonus, and how good that is."""
    tried = [(scale, *_best_bonus(galleries, scale)) for scale in NEW_SCALES]
    most = max(worse for _, _, worse in tried)
    return min(one for one in tried if one[2] >= most - MARGIN)


def _best_bonus(galleries: list[Both], scale: float) -> tuple[float, float]:
    """Return the middle of the bonuses that are as good as the best, where the kind that is worse off counts; and
    how good that is."""
    worse_b = np.mean([both.worse(both.found(scale, BONUSES[:, None])) for both in galleries], axis=0)
    good_b = worse_b >= worse_b.max() - MARGIN
    first = last = int(worse_b.argmax())
    while first > 0 and good_b[first - 1]:
        first -= 1
    while last + 1 < len(good_b) and good_b[last + 1]:
        last += 1
    return round(float(BONUSES[first : last + 1].mean()), 3), float(worse_b.max())


def _bonus_among_all(
    s: HeadSettings, folds: list[Fold], untrained: Fold | None, earlier: HeadSettings | None
) -> float:
    """Return the bonus of new items where one part compares all; none where nothing can be seen of it."""
    recalls = [] if untrained is None else list(untrained.recalls(s, BONUSES_AMONG_ALL))
    best = 0.0
    if _tell_enough(recalls):
        best = _best_of_both(recalls)
    elif earlier is not None and earlier.knows_all:
        best = earlier.bonus_among_all
    recalls = [one for fold in folds for one in fold.recalls(s, BONUSES_AMONG_ALL)]
    return max(best, _spared(recalls)) if _tell_enough(recalls) else best


def _tell_enough(recalls: list[Recalls]) -> bool:
    return sum(one.asked for one in recalls) >= MIN_ASKED and min(one.n_new for one in recalls) >= MIN_NEW


def _best_of_both(recalls: list[Recalls]) -> float:
    """Return the least bonus of the largest harmonic mean of what known and what new classes find, by which methods
    that know some classes and meet others are compared (Xian et al., CVPR 2017)."""
    known_b = np.mean([one.known_b for one in recalls], axis=0)
    new_b = np.mean([one.new_b for one in recalls], axis=0)
    best = (known_b * new_b / np.maximum(known_b + new_b, 1e-9)).argmax()
    return round(float(BONUSES_AMONG_ALL[best]), 3)


def _spared(recalls: list[Recalls]) -> float:
    """Return the largest bonus that takes no more than COST from known classes."""
    known_b = np.mean([one.known_b for one in recalls], axis=0)
    return round(float(BONUSES_AMONG_ALL[known_b >= known_b[0] - COST].max()), 3)


def _pays(both: list[tuple[Both, Both]], scale: float, bonus: float, share: float) -> bool:
    """Return whether the known part finds more than the new part would, by MARGIN and by more than chance: of known
    classes among themselves, or, with the scale and bonus that give `share`, in one gallery with new ones."""

    def more(gain: Callable[[Both], NDArray[np.float32]]) -> bool:
        pairs = [(a.is_known_q, mean_of_both(gain(a), gain(b), b.mate_q)) for a, b in both]
        return _is_more(np.concatenate([gain_q[known_q] for known_q, gain_q in pairs]))

    gained = share - _share(both, lambda gallery: gallery.by_new_q)
    return more(lambda gallery: gallery.known[1] - gallery.whitened_q) or (
        gained > MARGIN and more(lambda gallery: gallery.found(scale, bonus) - gallery.by_new_q)
    )


def _share(both: list[tuple[Both, Both]], hits: Callable[[Both], NDArray[np.float32]]) -> float:
    """Return the share of the kind that is worse off where one part alone compares all."""
    return float(np.mean([gallery.worse(hits(gallery)[None])[0] for gallery in _telling(both)]))


def _telling(both: list[tuple[Both, Both]]) -> list[Both]:
    """Return galleries that tell something of either kind: all that was left out of a few items may be single."""
    return [gallery for pair in both for gallery in pair if gallery.has_both_kinds]


def _is_more(gain_q: NDArray[np.float64], least: float = MARGIN) -> bool:
    """Return whether a mean gain of queries is above `least` and above what chance gives."""
    chance: float = STANDARD_ERRORS * float(gain_q.std()) / max(len(gain_q), 1) ** 0.5
    return mean(gain_q) > max(least, chance)


def best_of(tried: list[HeadSettings], hits: Callable[[HeadSettings], NDArray[np.float64]]) -> HeadSettings:
    """Return the first candidate, unless another is better by MARGIN and by more than chance. `hits`: which queries [q]
    find their class; the same queries for every candidate."""
    first, *others = (hits(settings) for settings in tried)
    best, most = tried[0], 0.0
    for settings, found_q in zip(tried[1:], others, strict=True):
        gain_q = found_q - first
        if _is_more(gain_q, max(most, MARGIN)):
            best, most = settings, mean(gain_q)
    return best
