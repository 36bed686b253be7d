"""Items and classes left out of a head's solution, and how they are found: what a choice of its settings rests on."""

# n rows of the sample   q queries   b bonuses   E = D + M entries of φ

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, Solver, normalise_in_place
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.lift import Float64s

LEAVE_OUT_EVERY, FEW_CLASSES = 4, 24
"""A fold leaves out every fourth class, and every fourth item of the others; of fewer than FEW_CLASSES classes two at
a time, as the scores of the known part depend on how many classes are left."""
MIN_KNOWN = 6
"""Classes that a fold leaves in the sums at least: of fewer directions nothing is learnt of those of more."""
FOLDS, FOLDS_OF_FEW, LARGE_DIM = 2, 4, 2048
"""Folds after the first are for scale and bonus alone, and not for wide lifts, whose every solution takes seconds."""

Bools = NDArray[np.bool_]
Indices = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Fold:
    """Sums without what is left out, and the sample that tells how that is found."""

    sums: ClassSums
    sample: FeatureCodes
    label_n: Indices
    known_n: Bools
    """Items of classes that the sums know."""
    query_n: Bools
    """Items that are left out."""
    layer_lD: Float64s | None
    few: bool
    """Whether there are too few classes to leave a quarter of them out."""

    @property
    def n_new(self) -> int:
        """Return the number of classes left out."""
        return len(set(self.label_n[~self.known_n].tolist()))

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

    def recalls(self, s: HeadSettings, bonus_b: Float64s) -> Iterator[Recalls]:
        """Yield what items left out find by the known part among all, where items of classes left out have one of these
        bonuses: in a gallery with items that the head was solved with, and in one without them. Nothing of a gallery
        where either kind has nothing to find."""
        scores = self._scores(self.solver.head(s).known_part(self.sample))
        is_known_q = self.known_n[self.query_n]
        for gallery_n in (np.ones(len(self.label_n), bool), self.query_n):
            mate_q = scores.mates(gallery_n)
            known_q, known_hit_q = scores.nearest(gallery_n & self.known_n)
            new_q, new_hit_q = scores.nearest(gallery_n & ~self.known_n)
            hit_bq = np.where(new_q + bonus_b[:, None] > known_q, new_hit_q, known_hit_q)
            asks_q, new_asks_q = mate_q & is_known_q, mate_q & ~is_known_q
            if asks_q.any() and new_asks_q.any():
                found = (hit_bq[:, some_q].mean(axis=1, dtype=np.float64) for some_q in (asks_q, new_asks_q))
                yield Recalls(min(int(asks_q.sum()), int(new_asks_q.sum())), self.n_new, *found)

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

    def _scores(self, z_nd: NDArray[np.float32]) -> Scores:
        queries = np.flatnonzero(self.query_n)
        similar_qn = z_nd[queries] @ z_nd.T
        same_qn = self.label_n[queries][:, None] == self.label_n[None]
        own = np.arange(len(queries)), queries
        similar_qn[own], same_qn[own] = -np.inf, False
        return Scores(similar_qn, same_qn)

    def both(self, s: HeadSettings) -> tuple[Both, Both]:
        """Return what each query finds by either part, in a gallery of items that the head was solved with, as most of
        a gallery's are, and in one without them.

        Of new items twice: `new` as if every class but the query's own were new, as whitening treats all alike, so that
        a query of a known class competes with the new items of all others, and one of a new class is found if
        whitening finds it among all; and `left_out`, where only classes left out are new. Of few classes that is the
        same, as hardly any can be left out, and a task brings many.
        """
        head, out_n = self.solver.head(s), self.query_n
        known, new = self._scores(head.known_part(self.sample)), self._scores(head.new_part(self.sample))
        is_known_q = self.known_n[out_n]

        def within(gallery_n: Bools) -> Both:
            by_new_q = new.nearest(gallery_n)[1]
            rival_q = np.where(
                is_known_q, new.largest(gallery_n, same=False), new.largest(gallery_n, same=True)
            )
            of_new = rival_q, np.where(is_known_q, np.float32(0), by_new_q)
            of_left_out = of_new if self.few else new.nearest(gallery_n & ~self.known_n)
            of_known = known.nearest(gallery_n & self.known_n)
            whitened_q = new.nearest(gallery_n & self.known_n)[1]
            mate_q, by_known_q = known.mates(gallery_n), known.nearest(gallery_n)[1]
            return Both(is_known_q, mate_q, of_known, of_new, of_left_out, whitened_q, by_known_q, by_new_q)

        return within(np.ones(len(out_n), bool)), within(out_n)


@dataclass(frozen=True, eq=False)
class Recalls:
    """What items of known and of new classes find in one gallery, for each bonus."""

    asked: int
    """Queries of the kind that has fewer."""
    n_new: int
    """Classes in it that the head was not solved with."""
    known_b: NDArray[np.float64]
    new_b: NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
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
class Both:
    """Of each query: its kind, (score, hit) of the nearest known, new and left out item, and hits of either part."""

    is_known_q: Bools
    mate_q: Bools
    """Queries that have something to find; the others say nothing of a gallery."""
    known: tuple[NDArray[np.float32], NDArray[np.float32]]
    new: tuple[NDArray[np.float32], NDArray[np.float32]]
    left_out: tuple[NDArray[np.float32], NDArray[np.float32]]
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

    def of_left_out(self) -> Both:
        """Return the same where only classes left out are new."""
        return replace(self, new=self.left_out)

    def worse(self, found_bq: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return for each row of hits how much it is beside what one part for all finds (of known classes the better
        of both parts, of new ones the new part), of the kind that is worse off."""
        known_q, new_q = self.mate_q & self.is_known_q, self.mate_q & ~self.is_known_q
        alone = (
            max(mean(self.by_known_q[known_q]), mean(self.by_new_q[known_q])),
            mean(self.by_new_q[new_q]),
        )
        if min(alone) <= 0:
            return np.zeros(len(found_bq))
        kinds = (found_bq[:, known_q], found_bq[:, new_q])
        found = [kind.mean(axis=1, dtype=np.float64) / a for kind, a in zip(kinds, alone, strict=True)]
        worse_b: NDArray[np.float64] = np.minimum(*found)
        return worse_b


def folds_of(
    sums: ClassSums, sample: FeatureCodes, classes: Sequence[str], layer_lD: Float64s | None
) -> Iterator[Fold]:
    """Yield folds that leave out every class in turn, whatever the trunk was trained on."""
    whole = _with_two_items(classes)
    few = len(whole) < FEW_CLASSES
    step = max(LEAVE_OUT_EVERY, len(whole) // 2) if few else LEAVE_OUT_EVERY
    for place in range(1 if sums.lift.out_dim > LARGE_DIM else FOLDS_OF_FEW if few else FOLDS):
        fold = _fold(sums, sample, classes, layer_lD, set(whole[place::step]), place, few)
        if fold is not None:
            yield fold


def fold_of_untrained(
    sums: ClassSums,
    sample: FeatureCodes,
    classes: Sequence[str],
    layer_lD: Float64s | None,
    trained: Collection[str],
) -> Fold | None:
    """Return a fold that leaves out classes which the trunk was not `trained` on, as others are that will come; at most
    one of LEAVE_OUT_EVERY of all, and None without any."""
    whole = _with_two_items(classes)
    new = [name for name in whole if name not in trained][: len(whole) // LEAVE_OUT_EVERY]
    return _fold(sums, sample, classes, layer_lD, set(new), 0, len(whole) < FEW_CLASSES)


def _with_two_items(classes: Sequence[str]) -> list[str]:
    """Return the classes of which something can be left out and found, by their hashes."""
    return sorted((name for name, n in Counter(classes).items() if n > 1), key=name_hash)


def _fold(
    sums: ClassSums,
    sample: FeatureCodes,
    classes: Sequence[str],
    layer_lD: Float64s | None,
    new: set[str],
    place: int,
    few: bool,
) -> Fold | None:
    """Leave out all items of `new` classes, and of others every LEAVE_OUT_EVERY-th from `place` on. None where too few
    are left, or nothing was left out."""
    counts = Counter(classes)
    row_of = {name: row for row, name in enumerate(sorted(counts))}
    label_n = np.array([row_of[name] for name in classes], np.int64)
    seen: Counter[str] = Counter()
    place_n = np.empty(len(classes), np.int64)
    for row, name in enumerate(classes):
        place_n[row] = seen[name]
        seen[name] += 1
    enough_n = np.array([counts[name] > 1 for name in classes], bool)
    every_n = np.array([min(LEAVE_OUT_EVERY, counts[name]) for name in classes], np.int64)
    new_n = np.array([name in new for name in classes], bool)
    query_n = enough_n & (new_n | ((place_n + place) % every_n == 0))
    if len(sums) - len(new) < MIN_KNOWN or not new or not (query_n & ~new_n).any():
        return None
    out = np.flatnonzero(query_n)
    held = ClassSums.of(sums.lift, sample[out], [classes[row] for row in out.tolist()])
    return Fold(sums.minus(held).without_means(new), sample, label_n, ~new_n, query_n, layer_lD, few)


def _hits_of_both(scores: Scores, gallery_n: Bools, query_n: Bools) -> NDArray[np.float64]:
    """Return what queries find, the mean of a gallery and of what is left out of it alone."""
    out_n = gallery_n & query_n
    hit_q, other_q = (scores.nearest(some_n)[1] for some_n in (gallery_n, out_n))
    return mean_of_both(hit_q, other_q, scores.mates(out_n))


def mean_of_both(
    first_q: NDArray[np.float32], second_q: NDArray[np.float32], mate_q: Bools
) -> NDArray[np.float64]:
    """Return the mean of what two galleries say of each query; of one with nothing to find in the second, the first."""
    mean_q: NDArray[np.float64] = np.where(mate_q, (first_q + second_q) / 2, first_q).astype(np.float64)
    return mean_q


def mean(values: NDArray[Any]) -> float:
    return float(values.mean(dtype=np.float64)) if len(values) else 0.0


def name_hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
