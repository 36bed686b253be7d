"""The choice of a head's settings by classes and items left out of its solution, on stored features alone.

All of it is a function of the set of stored items: the sample is drawn by hashes of names, so the order in which items
came, and items that have been erased since, leave no trace in the choice.
"""

# n rows of the sample   q queries   E = D + M entries of φ

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, discriminant, solve_head, unit_rows, whitening
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.lift import Float64s

SHRINKAGES, NEW_SHRINKAGES = (0.8, 0.95), (0.8, 0.5)
"""Tried of the known and of the new part, the default first."""
MARGIN, ERRORS = 0.005, 2.0
"""Another than the default has to be better by so much recall, and by so many standard errors of the difference: of 200
queries one or two more are found by chance, and a lift given up for them has cost 0.08 of recall."""
FOLDS, LARGE = 2, 2048
"""The second fold is for the bonus alone, and not for wide lifts, whose every solution takes seconds."""
HELD_OUT = 4
"""A fold leaves out every fourth class, and every fourth item of the others."""
MAX_CLASSES, MAX_ITEMS_PER_CLASS, MAX_OTHERS = 192, 16, 2048
"""Of the sample: so many classes with so many items, and one item of so many other classes, which only distract."""
BONUSES = np.linspace(-0.25, 1.0, 126)

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
    sums: ClassSums, sample: FeatureCodes, classes: Sequence[str], settings: HeadSettings | None = None
) -> HeadSettings:
    """Return `settings` with the shrinkages, the lift and the bonus of new items that serve what is left out best.

    `sums`: of all learnt items, with the widest lift that may be used. `sample`: rows of `sample_rows`, every
    one of which is in the sums. Lift and shrinkage by recall of items left out, among known classes;
    `new_shrinkage` by recall of classes left out, among themselves; `new_bonus` by both in one gallery, as large a
    share as can be of what either part reaches alone, for the one that is worse off. Where too few classes or items
    can be left out, the settings stay.
    """
    s = settings or HeadSettings()
    folds = list(_folds(sums, sample, classes))
    if not folds:
        return s
    first = folds[0]
    if sums.lift.width:
        s = best_of([replace(s, width=width) for width in (sums.lift.width, 0)], first.known_hits)
    s = best_of([replace(s, shrinkage=shrinkage) for shrinkage in SHRINKAGES], first.known_hits)
    s = best_of([replace(s, new_shrinkage=shrinkage) for shrinkage in NEW_SHRINKAGES], first.new_hits)
    return replace(s, new_bonus=_best_bonus([both for fold in folds for both in fold.both(s)]))


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

    def known_hits(self, s: HeadSettings) -> NDArray[np.float64]:
        """Return which items left out find their class among items of known classes, [q]: the mean of a gallery with
        those that the head was solved with, and of one without them, which tells better what a lift is worth."""
        z_nd = self._project(discriminant(self.sums, s), s.width, self.known_n)
        label_n, out_n = self.label_n[self.known_n], self.query_n[self.known_n]
        with_all, among_out = (
            _nearest(z_nd, label_n, out_n, n)[1] for n in (np.ones(len(z_nd), bool), out_n)
        )
        return 0.5 * (with_all.astype(np.float64) + among_out)

    def new_hits(self, s: HeadSettings) -> NDArray[np.float64]:
        """Return which items of classes left out find their class among themselves, [q]."""
        z_nd = self._project(whitening(self.sums, s.new_shrinkage), 0, ~self.known_n)
        everyone = np.ones(len(z_nd), bool)
        return _nearest(z_nd, self.label_n[~self.known_n], everyone, everyone)[1].astype(np.float64)

    def _project(self, map_dE: Float64s, width: int, rows_n: Bools) -> NDArray[np.float32]:
        lift = self.sums.narrowed(width).lift
        phi_nE = lift.apply(self.sample[np.flatnonzero(rows_n)].decode())
        phi_nE -= self.sums.mean()[: lift.out_dim].astype(np.float32)
        return unit_rows(phi_nE @ map_dE.T.astype(np.float32))

    def both(self, s: HeadSettings) -> list[_Both]:
        """Return what each query finds nearest among items of known classes, of others, and of all by one part alone.

        Twice: in a gallery of items that the head was solved with, as most of a gallery's are, and without them.
        """
        head, out_n = solve_head(self.sums, s), self.query_n
        known_nd, new_nD = head.known_part(self.sample), head.new_part(self.sample)
        return [
            _Both(
                self.known_n[out_n],
                _nearest(known_nd, self.label_n, out_n, gallery_n & self.known_n),
                _nearest(new_nD, self.label_n, out_n, ~self.known_n),
                _nearest(known_nd, self.label_n, out_n, gallery_n)[1],
                _nearest(new_nD, self.label_n, out_n, gallery_n)[1],
            )
            for gallery_n in (np.ones(len(out_n), bool), out_n)
        ]


@dataclass(frozen=True, eq=False)
class _Both:
    """Of each query: its kind, (score, hit) of the nearest known and the nearest new item, and hits of either part."""

    is_known_q: Bools
    known: tuple[NDArray[np.float32], NDArray[np.float32]]
    new: tuple[NDArray[np.float32], NDArray[np.float32]]
    by_known_q: NDArray[np.float32]
    by_new_q: NDArray[np.float32]

    def recalls(self, bonus: float) -> NDArray[np.float64]:
        """Return (of known classes, of new ones) in one gallery, each beside what the part for its
        kind reaches alone."""
        found_q = np.where(self.new[0] + bonus > self.known[0], self.new[1], self.known[1])
        known_q = self.is_known_q
        alone = _mean(self.by_known_q[known_q]), _mean(self.by_new_q[~known_q])
        found = _mean(found_q[known_q]), _mean(found_q[~known_q])
        return np.array([f / a if a > 0 else np.nan for f, a in zip(found, alone, strict=True)])


def _folds(sums: ClassSums, sample: FeatureCodes, classes: Sequence[str]) -> Iterator[_Fold]:
    counts = Counter(classes)
    whole = sorted((name for name, n in counts.items() if n > 1), key=_hash)
    row_of = {name: row for row, name in enumerate(sorted(counts))}
    label_n = np.array([row_of[name] for name in classes], np.int64)
    # Of each class, and of the classes, every HELD_OUT-th by its place in the sample.
    place: Counter[str] = Counter()
    place_n = np.empty(len(classes), np.int64)
    for row, name in enumerate(classes):
        place_n[row] = place[name]
        place[name] += 1
    enough_n = np.array([counts[name] > 1 for name in classes], bool)
    every_n = np.array([min(HELD_OUT, counts[name]) for name in classes], np.int64)
    for fold in range(FOLDS if sums.lift.out_dim <= LARGE else 1):
        new = set(whole[fold::HELD_OUT])
        new_n = np.array([name in new for name in classes], bool)
        query_n = enough_n & (new_n | ((place_n + fold) % every_n == 0))
        if len(sums) - len(new) < 2 or len(new) < 2 or not (query_n & ~new_n).any():
            continue
        out = np.flatnonzero(query_n)
        held = ClassSums.of(sums.lift, sample[out], [classes[row] for row in out.tolist()])
        yield _Fold(sums.minus(held).without_means(new), sample, label_n, ~new_n, query_n)


def _nearest(
    z_nd: NDArray[np.float32], label_n: Indices, query_n: Bools, gallery_n: Bools
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return (score, whether it is of the query's class) of the item of the gallery that is nearest to each query
    and not the query."""
    queries, gallery = np.flatnonzero(query_n), np.flatnonzero(gallery_n)
    similar_qg = z_nd[queries] @ z_nd[gallery].T
    similar_qg[queries[:, None] == gallery[None]] = -np.inf
    best_q = similar_qg.argmax(axis=1) if len(gallery) else np.zeros(len(queries), np.int64)
    score_q = similar_qg[np.arange(len(queries)), best_q] if len(gallery) else np.full(len(queries), -np.inf)
    hit_q = label_n[gallery[best_q]] == label_n[queries]
    return score_q.astype(np.float32), hit_q.astype(np.float32)


def _best_bonus(galleries: list[_Both]) -> float:
    """Return the middle of the bonuses that are as good as the best, where the part that is worse off counts."""
    worse_b = np.mean([[both.recalls(float(bonus)).min() for bonus in BONUSES] for both in galleries], axis=0)
    worse_b = np.nan_to_num(worse_b)
    good_b = worse_b >= worse_b.max() - MARGIN
    first = last = int(worse_b.argmax())
    while first > 0 and good_b[first - 1]:
        first -= 1
    while last + 1 < len(good_b) and good_b[last + 1]:
        last += 1
    return round(float(BONUSES[first : last + 1].mean()), 3)


def best_of(tried: list[HeadSettings], hits: Callable[[HeadSettings], NDArray[np.float64]]) -> HeadSettings:
    """Return the first candidate, unless another is better by MARGIN and by more than chance.

    `hits`: which queries [q] find their class; the same queries for every candidate.
    """
    first, *others = (hits(settings) for settings in tried)
    best, most = tried[0], 0.0
    for settings, found_q in zip(tried[1:], others, strict=True):
        gain_q = found_q - first
        gain = _mean(gain_q)
        chance = ERRORS * float(gain_q.std()) / max(len(gain_q), 1) ** 0.5
        if gain > max(most, MARGIN, chance):
            best, most = settings, gain
    return best


def _mean(values: Iterable[float]) -> float:
    found = np.fromiter(values, np.float64)
    return float(found.mean()) if len(found) else 0.0


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
