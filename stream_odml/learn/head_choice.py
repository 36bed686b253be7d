"""The choice of a head's settings by classes and items left out of its solution, on stored features alone.

A choice is a function of the set of items stored when it is made: the sample is drawn by hashes of names, so the order
in which they came leaves no trace in it. A head keeps its choice until classes or items have changed by
`choice_growth`: until then its settings, a handful of numbers and no feature, may be those that items chose which have
been erased since.
"""

# n rows of the sample   q queries   E = D + M entries of φ

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, Solver, normalise_in_place
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.lift import Float64s

SHRINKAGES, NEW_SHRINKAGES = (0.8, 0.95), (0.8, 0.5)
"""Tried of the known and of the new part, the default first."""
LAYERS = (0.0, 0.5)
"""Tried of the layer that the trunk was trained behind, where the known part compares all."""
MARGIN, STANDARD_ERRORS = 0.005, 2.0
"""Another than the default has to be better by so much recall, and by so many standard errors of the difference: of 200
queries one or two more are found by chance, and a lift given up for them has cost 0.08 of recall."""
FOLDS, FOLDS_OF_FEW, LARGE_DIM = 2, 4, 2048
"""Folds after the first are for scale and bonus alone, and not for wide lifts, whose every solution takes seconds."""
MAX_WHITENED = 100_000
"""Items up to which whitening may serve all: a searcher then holds D values an item, where the known part has 128."""
LEAVE_OUT_EVERY, FEW_CLASSES = 4, 24
"""A fold leaves out every fourth class, and every fourth item of the others; of fewer than FEW_CLASSES classes two at
a time, as the scores of the known part depend on how many classes are left."""
MIN_KNOWN = 6
"""Classes that a fold leaves in the sums at least: of fewer directions nothing is learnt of those of more."""
NEW_SCALES = (1.0, 0.7, 0.5, 0.35)
"""Tried of the cosine of new items. Of those that serve as well the smallest: it relies least on new items, whose
scores a trunk overstates for classes that it was trained on, and all that can be left out may be of such classes."""
MAX_CLASSES, MAX_ITEMS_PER_CLASS, MAX_OTHERS = 192, 16, 2048
"""Of the sample: so many classes with so many items, and one item of so many other classes, which only distract."""
BONUSES = np.linspace(-0.25, 1.0, 126)
BONUSES_OF_ALL, COST = np.linspace(0.0, 0.25, 51), 0.01
"""Where the known part compares all items the bonus of new ones is the largest that takes no more recall than COST from
known classes. What it gives to new ones cannot be told by classes left out: a trunk that was trained on them finds them
whatever it is."""

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]


def sample_rows(keys: Sequence[str], classes: Sequence[str]) -> Indices:
    """Return the rows of a bounded sample of items, by their keys (any names that are unique) and classes. Sorted by
    hash, so that the sample of a set of items is the same whatever their order."""
    counts = Counter(classes)
    in_order = sorted(counts, key=_hash)
    whole = [name for name in in_order if counts[name] > 1][:MAX_CLASSES]
    others = set(in_order) - set(whole)
    wanted = {
        **dict.fromkeys(whole, MAX_ITEMS_PER_CLASS),
        **dict.fromkeys(sorted(others, key=_hash)[:MAX_OTHERS], 1),
    }
    rows_of: dict[str, list[int]] = defaultdict(list)
    for row, name in enumerate(classes):
        if name in wanted:
            rows_of[name].append(row)
    hash_of = {row: _hash(keys[row]) for rows in rows_of.values() for row in rows}
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
) -> HeadSettings:
    """Return `settings` with the shrinkages, the lift and the bonus of new items that serve what is left out best.

    `sums`: of all learnt items, with the widest lift that may be used. `sample`: rows of `sample_rows`, every
    one of which is in the sums. Lift and shrinkage by recall of items left out, among known classes;
    `new_shrinkage` by recall of classes left out, among all; `new_scale` and `new_bonus` by both in one gallery, as
    large a share as can be of what one part for all would reach, for the kind that is worse off. Of more classes than
    dimensions the known part compares all items (`knows_all`) where it reaches a larger share of both kinds, and has
    the layer that the trunk was trained behind (`layer_lD`) where that finds more; once it does, until it finds less.
    New items then have the largest bonus that known ones can spare.

    Of up to MAX_WHITENED items all are left to whitening, as new ones are, unless the discriminant is seen to find
    more: a trunk that was trained on a few classes alone puts every item near one of them, and directions in which
    they differ then tell new items from known ones no more. Not where there is a lift, which whitening does without.
    Where the head before had a discriminant (`earlier`) it stays: of items that a trunk has been trained on
    either part finds nearly all, which tells nothing of items to come.

    Where too few classes or items can be left out, the settings stay, and up to MAX_WHITENED items are left to
    whitening, with a lift too: two parts would be compared by a bonus that nothing has measured, which loses one of
    the kinds.
    """
    s = settings or HeadSettings()
    folds = list(_folds(sums, sample, classes, layer_lD))
    few = sums.n_items <= MAX_WHITENED
    if not folds:
        return replace(s, discriminant=s.discriminant and not few)
    first = folds[0]
    if sums.lift.width:
        s = best_of([replace(s, width=width) for width in (sums.lift.width, 0)], first.known_hits)
    s = best_of([replace(s, shrinkage=shrinkage) for shrinkage in SHRINKAGES], first.known_hits)
    s = best_of([replace(s, new_shrinkage=shrinkage) for shrinkage in NEW_SHRINKAGES], first.new_hits)
    both = [fold.both(s) for fold in folds]
    scale, bonus, share = _best_scores(_telling(both))
    # Directions in which fewer classes differ than there are dimensions say little of others, whatever a trunk shows
    # that was trained on the classes left out.
    if len(first.sums) > sums.lift.dim:
        s = replace(s, knows_all=_share(both, lambda gallery: gallery.by_known_q) > share + MARGIN)
    if s.knows_all and len(first.solver.layer_lD):
        layers = sorted(LAYERS, reverse=earlier is not None and earlier.layer > 0)
        s = best_of([replace(s, layer=layer) for layer in layers], first.all_hits)
    if few and not sums.lift.width:
        keeps = earlier is not None and earlier.discriminant
        s = replace(s, discriminant=keeps or _pays(both, scale, bonus, share))
    if s.knows_all and s.discriminant:
        scale, bonus = 1.0, _spared(folds, s)
    return replace(s, new_scale=scale, new_bonus=bonus)


@dataclass(frozen=True, eq=False)
class _Fold:
    """Sums without what is left out, and the sample that tells how that is found."""

    sums: ClassSums
    sample: FeatureCodes
    label_n: Indices
    known_n: Bools
    """Items of classes that the sums know."""
    query_n: Bools
    """Items that are left out."""
    layer_lD: Float64s | None

    @cached_property
    def solver(self) -> Solver:
        return Solver(self.sums, self.layer_lD)

    def known_hits(self, s: HeadSettings) -> NDArray[np.float64]:
        """Return which items left out find their class among items of known classes, [q]: the mean of a gallery with
        those that the head was solved with, and of one without them, which tells better what a lift is worth."""
        scores = self._scores(self._project(self.solver.discriminant(s), s.width))
        return _hits_of_both(scores, self.known_n, self.query_n)[self.known_n[self.query_n]]

    def all_hits(self, s: HeadSettings) -> NDArray[np.float64]:
        """Return the same of all items left out, of classes known or not, by the known part among all items."""
        scores = self._scores(self.solver.head(s).known_part(self.sample))
        return _hits_of_both(scores, np.ones(len(self.label_n), bool), self.query_n)

    def known_recall(self, s: HeadSettings, bonus_b: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the share of items left out of known classes that find theirs by the known part among all items, [b],
        where items of classes left out have a bonus: the mean of a gallery with those that the head was solved with,
        and of one without them."""
        scores, recalls = self._scores(self.solver.head(s).known_part(self.sample)), []
        for gallery_n in (np.ones(len(self.label_n), bool), self.query_n):
            of_known, of_new = (
                scores.nearest(gallery_n & some_n) for some_n in (self.known_n, ~self.known_n)
            )
            hit_bq = np.where(of_new[0] + bonus_b[:, None] > of_known[0], of_new[1], of_known[1])
            asks_q = self.known_n[self.query_n] & scores.mates(gallery_n)
            recalls.append(hit_bq[:, asks_q].sum(axis=1, dtype=np.float64) / max(int(asks_q.sum()), 1))
        mean_b: NDArray[np.float64] = np.mean(recalls, axis=0)
        return mean_b

    def new_hits(self, s: HeadSettings) -> NDArray[np.float64]:
        """Return which items of classes left out find their class among all items, [q]."""
        scores = self._scores(self._project(self.solver.whitening(s.new_shrinkage), 0))
        hit_q = scores.nearest(np.ones(len(self.label_n), bool))[1]
        return hit_q[~self.known_n[self.query_n]].astype(np.float64)

    def _project(self, map_dE: Float64s, width: int) -> NDArray[np.float32]:
        lift = self.sums.narrowed(width).lift
        phi_nE = lift.apply(self.sample.decode())
        phi_nE -= self.sums.mean()[: lift.out_dim].astype(np.float32)
        return normalise_in_place(phi_nE @ map_dE.T.astype(np.float32))

    def _scores(self, z_nd: NDArray[np.float32]) -> _Scores:
        queries = np.flatnonzero(self.query_n)
        similar_qn = z_nd[queries] @ z_nd.T
        same_qn = self.label_n[queries][:, None] == self.label_n[None]
        own = np.arange(len(queries)), queries
        similar_qn[own], same_qn[own] = -np.inf, False
        return _Scores(similar_qn, same_qn)

    def both(self, s: HeadSettings) -> tuple[_Both, _Both]:
        """Return what each query finds by either part, in a gallery of items that the head was solved with, as most of
        a gallery's are, and in one without them.

        Few classes can be left out, and a task brings many: every class but the query's own stands for one that is
        new, as whitening treats all alike. A query of a known class competes with the new items of all others, and one
        of a new class is found if whitening finds it among all.
        """
        head, out_n = self.solver.head(s), self.query_n
        known, new = self._scores(head.known_part(self.sample)), self._scores(head.new_part(self.sample))
        is_known_q = self.known_n[out_n]

        def within(gallery_n: Bools) -> _Both:
            by_new_q = new.nearest(gallery_n)[1]
            rival_q = np.where(
                is_known_q, new.largest(gallery_n, same=False), new.largest(gallery_n, same=True)
            )
            of_new = rival_q, np.where(is_known_q, np.float32(0), by_new_q)
            of_known = known.nearest(gallery_n & self.known_n)
            whitened_q = new.nearest(gallery_n & self.known_n)[1]
            mate_q, by_known_q = known.mates(gallery_n), known.nearest(gallery_n)[1]
            return _Both(is_known_q, mate_q, of_known, of_new, whitened_q, by_known_q, by_new_q)

        return within(np.ones(len(out_n), bool)), within(out_n)


@dataclass(frozen=True, eq=False)
class _Scores:
    """Cosines of queries with all items, of none with itself, and which other items are of the query's class."""

    similar_qn: NDArray[np.float32]
    same_qn: Bools

    def nearest(self, gallery_n: Bools) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return (score, whether it is of the query's class) of the nearest item of a gallery."""
        gallery, row_q = np.flatnonzero(gallery_n), np.arange(len(self.similar_qn))
        if not len(gallery):
            return np.full(len(row_q), -np.inf, np.float32), np.zeros(len(row_q), np.float32)
        best_q = gallery[self.similar_qn[:, gallery].argmax(axis=1)]
        return self.similar_qn[row_q, best_q], self.same_qn[row_q, best_q].astype(np.float32)

    def mates(self, gallery_n: Bools) -> Bools:
        """Return which queries have an item of their class in a gallery: the others find nothing by any head."""
        mate_q: Bools = np.any(self.same_qn[:, gallery_n], axis=1)
        return mate_q

    def largest(self, gallery_n: Bools, *, same: bool) -> NDArray[np.float32]:
        """Return the score of the nearest item of a gallery that is of the query's class, or is not."""
        within_qn = np.where((self.same_qn == same) & gallery_n[None], self.similar_qn, np.float32(-np.inf))
        score_q: NDArray[np.float32] = within_qn.max(axis=1, initial=-np.inf)
        return score_q


@dataclass(frozen=True, eq=False)
class _Both:
    """Of each query: its kind, (score, hit) of the nearest known and the nearest new item, and hits of either part."""

    is_known_q: Bools
    mate_q: Bools
    """Queries that have something to find; the others say nothing of a gallery."""
    known: tuple[NDArray[np.float32], NDArray[np.float32]]
    new: tuple[NDArray[np.float32], NDArray[np.float32]]
    whitened_q: NDArray[np.float32]
    """Hits among items of known classes by the new part."""
    by_known_q: NDArray[np.float32]
    by_new_q: NDArray[np.float32]

    @property
    def has_both_kinds(self) -> bool:
        """Whether queries of known and of new classes have something to find."""
        return bool((self.mate_q & self.is_known_q).any() and (self.mate_q & ~self.is_known_q).any())

    def found(self, scale: float, bonus: float | NDArray[np.float64]) -> NDArray[np.float32]:
        """Return hits in one gallery, [q]; of bonuses [b, 1] for each of them, [b, q]."""
        return np.where(scale * self.new[0] + bonus > self.known[0], self.new[1], self.known[1])

    def worse(self, found_bq: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return for each row of hits how much it is beside what one part for all finds (of known classes the better
        of both parts, of new ones the new part), of the kind that is worse off."""
        known_q, new_q = self.mate_q & self.is_known_q, self.mate_q & ~self.is_known_q
        alone = (
            max(_mean(self.by_known_q[known_q]), _mean(self.by_new_q[known_q])),
            _mean(self.by_new_q[new_q]),
        )
        if min(alone) <= 0:
            return np.zeros(len(found_bq))
        kinds = (found_bq[:, known_q], found_bq[:, new_q])
        found = [kind.mean(axis=1, dtype=np.float64) / a for kind, a in zip(kinds, alone, strict=True)]
        worse_b: NDArray[np.float64] = np.minimum(*found)
        return worse_b


def _folds(
    sums: ClassSums, sample: FeatureCodes, classes: Sequence[str], layer_lD: Float64s | None
) -> Iterator[_Fold]:
    counts = Counter(classes)
    whole = sorted((name for name, n in counts.items() if n > 1), key=_hash)
    row_of = {name: row for row, name in enumerate(sorted(counts))}
    label_n = np.array([row_of[name] for name in classes], np.int64)
    # Of each class, and of the classes, every LEAVE_OUT_EVERY-th by its place in the sample.
    place: Counter[str] = Counter()
    place_n = np.empty(len(classes), np.int64)
    for row, name in enumerate(classes):
        place_n[row] = place[name]
        place[name] += 1
    enough_n = np.array([counts[name] > 1 for name in classes], bool)
    every_n = np.array([min(LEAVE_OUT_EVERY, counts[name]) for name in classes], np.int64)
    few = len(whole) < FEW_CLASSES
    step = max(LEAVE_OUT_EVERY, len(whole) // 2) if few else LEAVE_OUT_EVERY
    for fold in range(1 if sums.lift.out_dim > LARGE_DIM else FOLDS_OF_FEW if few else FOLDS):
        new = set(whole[fold::step])
        new_n = np.array([name in new for name in classes], bool)
        query_n = enough_n & (new_n | ((place_n + fold) % every_n == 0))
        if len(sums) - len(new) < MIN_KNOWN or not new or not (query_n & ~new_n).any():
            continue
        out = np.flatnonzero(query_n)
        held = ClassSums.of(sums.lift, sample[out], [classes[row] for row in out.tolist()])
        yield _Fold(sums.minus(held).without_means(new), sample, label_n, ~new_n, query_n, layer_lD)


def _best_scores(galleries: list[_Both]) -> tuple[float, float, float]:
    """Return the smallest scale of those that serve as well as the best, its bonus, and how good that is."""
    tried = [(scale, *_best_bonus(galleries, scale)) for scale in NEW_SCALES]
    most = max(worse for _, _, worse in tried)
    return min(one for one in tried if one[2] >= most - MARGIN)


def _best_bonus(galleries: list[_Both], scale: float) -> tuple[float, float]:
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


def _spared(folds: list[_Fold], s: HeadSettings) -> float:
    """Return the largest bonus of new items up to which known ones lose COST at most."""
    recall_b = np.mean([fold.known_recall(s, BONUSES_OF_ALL) for fold in folds], axis=0)
    costs_more_b = recall_b < recall_b[0] - COST
    last = int(costs_more_b.argmax()) - 1 if costs_more_b.any() else len(recall_b) - 1
    return round(float(BONUSES_OF_ALL[last]), 3)


def _pays(both: list[tuple[_Both, _Both]], scale: float, bonus: float, share: float) -> bool:
    """Return whether the known part finds more than the new part would, by MARGIN and by more than chance: of known
    classes among themselves, or, with the scale and bonus that give `share`, in one gallery with new ones."""

    def more(gain: Callable[[_Both], NDArray[np.float32]]) -> bool:
        pairs = [(a.is_known_q, _mean_of_both(gain(a), gain(b), b.mate_q)) for a, b in both]
        return _is_more(np.concatenate([gain_q[known_q] for known_q, gain_q in pairs]))

    gained = share - _share(both, lambda gallery: gallery.by_new_q)
    return more(lambda gallery: gallery.known[1] - gallery.whitened_q) or (
        gained > MARGIN and more(lambda gallery: gallery.found(scale, bonus) - gallery.by_new_q)
    )


def _share(both: list[tuple[_Both, _Both]], hits: Callable[[_Both], NDArray[np.float32]]) -> float:
    """Return the share of the kind that is worse off where one part alone compares all."""
    return float(np.mean([gallery.worse(hits(gallery)[None])[0] for gallery in _telling(both)]))


def _telling(both: list[tuple[_Both, _Both]]) -> list[_Both]:
    """Return galleries that tell something of either kind: all that was left out of a few items may be single."""
    return [gallery for pair in both for gallery in pair if gallery.has_both_kinds]


def _hits_of_both(scores: _Scores, gallery_n: Bools, query_n: Bools) -> NDArray[np.float64]:
    """Return what queries find, the mean of a gallery and of what is left out of it alone."""
    out_n = gallery_n & query_n
    hit_q, other_q = (scores.nearest(some_n)[1] for some_n in (gallery_n, out_n))
    return _mean_of_both(hit_q, other_q, scores.mates(out_n))


def _mean_of_both(
    first_q: NDArray[np.float32], second_q: NDArray[np.float32], mate_q: Bools
) -> NDArray[np.float64]:
    """Return the mean of what two galleries say of each query; of one with nothing to find in the second, the first."""
    mean_q: NDArray[np.float64] = np.where(mate_q, (first_q + second_q) / 2, first_q).astype(np.float64)
    return mean_q


def _is_more(gain_q: NDArray[np.float64], least: float = MARGIN) -> bool:
    """Return whether a mean gain of queries is above `least` and above what chance gives."""
    chance: float = STANDARD_ERRORS * float(gain_q.std()) / max(len(gain_q), 1) ** 0.5
    return _mean(gain_q) > max(least, chance)


def best_of(tried: list[HeadSettings], hits: Callable[[HeadSettings], NDArray[np.float64]]) -> HeadSettings:
    """Return the first candidate, unless another is better by MARGIN and by more than chance. `hits`: which queries [q]
    find their class; the same queries for every candidate."""
    first, *others = (hits(settings) for settings in tried)
    best, most = tried[0], 0.0
    for settings, found_q in zip(tried[1:], others, strict=True):
        gain_q = found_q - first
        if _is_more(gain_q, max(most, MARGIN)):
            best, most = settings, _mean(gain_q)
    return best


def _mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
