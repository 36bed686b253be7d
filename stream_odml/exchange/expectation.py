"""What recall an upgrade will serve, measured before it is made.

Pairs that the map of a fold has not seen ask, in the gallery as it would be: all items but the one of who asks, pairs
exact and others by that map, and the head solved with those that do not ask. What is expected is so of the real density
of items, not of that of the pairs, nor of a gallery without a fold of them.
"""

# n items or pairs   D old feature   F new feature

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stream_odml.config.stream import StreamConfig
from stream_odml.exchange.pairs import Pairs
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.cross_map import Choice, CrossMap, fit_cross_map
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.head_choice import MAX_WHITENED
from stream_odml.learn.lift import Lift
from stream_odml.pipeline.head_solving import Items, solve
from stream_odml.pipeline.holdout import is_held_out
from stream_odml.zero import unit_rows

FOLDS = 10
"""As few pairs as can be are kept from the map that is tried: fewer made it look worse than the one that is served."""
WITHIN = (1.0, 0.3)
"""Candidates: share of a mapped item's deviation from the mean of its class that is left."""
MIN_CHOOSING = 512
"""Pairs by which the settings of a head are chosen, at least."""
MAX_ITEMS = 20_000
"""Items of the gallery that is asked; of a larger root, at random: recall is then a little underestimated."""
CLASS_FOLDS = 4
BLIND_PARTS = 3
"""In which pairs of a fold of classes ask: the head knows such a class by all other items of it."""
MAX_BLIND = 0.02
"""Share of items of classes without a pair that is passed over."""
Floats = NDArray[np.float32]
Floats64 = NDArray[np.float64]
Strings = NDArray[np.str_]


@dataclass(frozen=True)
class Recalls:
    """Recall@1 of images of known classes, and how far mapped items are drawn to their class for it."""

    staying: float
    mapped: float
    reembedded: float
    within: float


@dataclass(frozen=True, eq=False)
class OldItems:
    """Labelled items of the root, by the features that are stored."""

    h_nD: Floats
    classes: Strings
    ids: Strings

    def learnt(self, held_out: float) -> NDArray[np.bool_]:
        """Return which of them the new root will learn from: a share is held out there, by their ids."""
        return np.array([not (item and is_held_out(item, held_out)) for item in self.ids.tolist()], bool)

    def mapped(self, cross: CrossMap, exact: Pairs) -> Floats:
        """Return new features: predicted, and of items that are pairs the true ones."""
        found_nF = cross.apply(self.h_nD, self.classes.tolist())
        place = {item: row for row, item in enumerate(exact.ids) if item}
        rows = np.array([place.get(item, -1) for item in self.ids.tolist()], np.int64)
        found_nF[rows >= 0] = unit(exact.new_nF[rows[rows >= 0]])
        return found_nF


def class_means(parts: Iterable[tuple[Floats, Sequence[str]]]) -> dict[str, Floats]:
    """Return the mean of each class over features and classes that come in parts."""
    sums: dict[str, NDArray[np.float64]] = {}
    counts: Counter[str] = Counter()
    for h_nF, classes in parts:
        names, codes_n = np.unique(np.array(classes, np.str_), return_inverse=True)
        for code, name in enumerate(names.tolist()):
            rows = h_nF[codes_n == code]
            sums[name] = sums.get(name, 0.0) + rows.sum(axis=0, dtype=np.float64)
            counts[name] += len(rows)
    return {name: (total / counts[name]).astype(np.float32) for name, total in sums.items()}


def unit(h_nF: Floats) -> Floats:
    """Return directions: beside predicted features, which are of about length 1, true ones have that length too."""
    return np.asarray(unit_rows(h_nF), np.float32)


def settings_by_pairs(pairs: Pairs, config: StreamConfig, count: int) -> HeadSettings | None:
    """Return settings for the head of a root of so many items, chosen by pairs alone, or None for too few of them.

    Mapped items would choose wrongly: they lie so near their class that any head finds them. What they chose would stay
    when all are embedded again, as their number does not change.
    """
    if len(pairs) < MIN_CHOOSING:
        return None
    names = [item or str(row) for row, item in enumerate(pairs.ids)]
    items = OldItems(unit(pairs.new_nF), np.array(pairs.classes, np.str_), np.array(names, np.str_))
    found = _settings(items.h_nD, items, config)
    return found if count <= MAX_WHITENED else replace(found, discriminant=True)


def expected_recalls(
    pairs: Pairs,
    items: OldItems,
    config: StreamConfig,
    choice: Choice,
    cross: CrossMap,
    chosen: HeadSettings | None,
) -> Recalls:
    """Return what is to be expected of staying, of mapped items and of embedded ones. `chosen`: settings of the head
    for mapped items, where the first stage will not choose them. Classes without a pair are mapped less well: their
    part of the items is expected to be found as pairs are whose whole class the map has not seen."""
    if not set(pairs.classes) & set(items.classes.tolist()):
        return _of_pairs(pairs, config, choice)
    before = _settings(items.h_nD, items, config)
    after = [
        chosen or _settings(items.mapped(each, pairs), items, config) for each in _drawn(cross, items, pairs)
    ]

    def asking(folds_n: NDArray[np.int64], blind: bool) -> Floats64:
        """Return recall of staying, and of mapped items with each of `WITHIN`. `blind`: a fold is of whole classes."""
        found, weights = list[list[float]](), list[int]()
        parts_n = random.permutation(len(pairs)) % BLIND_PARTS
        for fold in range(folds_n.max() + 1):
            seen, asked_n = pairs.at(folds_n != fold), folds_n == fold
            one = fit_cross_map(seen.old_nD, seen.new_nF, seen.classes, config.seed, choice)
            # Served, every pair is exact; of a class without one, none is.
            exact = seen if blind else pairs
            drawn = [items.mapped(each, exact) for each in _drawn(one, items, seen)]
            for part_n in (
                [asked_n & (parts_n == part) for part in range(BLIND_PARTS)] if blind else [asked_n]
            ):
                asked = pairs.at(part_n)
                staying = _recall(items.h_nD, items, asked.old_nD, asked, before, config)
                mapped = [
                    _recall(h, items, asked.new_nF, asked, settings, config)
                    for h, settings in zip(drawn, after, strict=True)
                ]
                found.append([staying, *mapped])
                weights.append(len(asked))
        of_nK, weights_n = np.array(found), np.array(weights, np.float64)
        counts_n = np.isfinite(of_nK).all(axis=1) & (weights_n > 0)
        return np.asarray(np.average(of_nK[counts_n], axis=0, weights=weights_n[counts_n]), np.float64)

    random = np.random.default_rng(config.seed)
    recalls = asking(random.permutation(len(pairs)) % FOLDS, blind=False)
    blind = float((~np.isin(items.classes, np.unique(pairs.classes))).mean())
    if blind > MAX_BLIND and len(set(pairs.classes)) > CLASS_FOLDS:
        codes_n = np.unique(pairs.classes, return_inverse=True)[1]
        blindly = asking((random.permutation(codes_n.max() + 1) % CLASS_FOLDS)[codes_n], blind=True)
        recalls[1:] = (1 - blind) * recalls[1:] + blind * blindly[1:]
    staying = float(recalls[0])
    mapped, within = _best(recalls[1:].tolist())
    return Recalls(staying, mapped, max(mapped, _embedded_recall(pairs, config, staying)), within)


def _embedded_recall(pairs: Pairs, config: StreamConfig, staying: float) -> float:
    """Return recall once all is embedded again. Only that of pairs is known: in a gallery of pairs, it is taken to
    the density of the root by the share of errors that the old model loses on that way."""
    old_few, new_few = (_among_pairs(h, pairs, config) for h in (pairs.old_nD, pairs.new_nF))
    denser = min(1.0, (1 - staying) / max(1 - old_few, 1e-3))
    return 1 - (1 - new_few) * denser


def _drawn(cross: CrossMap, items: OldItems, exact: Pairs) -> Iterator[CrossMap]:
    """Return the map with each of `WITHIN`."""
    means = class_means([(items.mapped(cross, exact), items.classes.tolist())])
    return (cross.drawn_to(means, within) for within in WITHIN)


def _best(recalls: Sequence[float]) -> tuple[float, float]:
    """Return the highest of recalls that belong to `WITHIN`, and its candidate."""
    return max(zip(recalls, WITHIN, strict=True))


def _settings(h_nF: Floats, items: OldItems, config: StreamConfig) -> HeadSettings:
    """Return those that the first stage will choose."""
    lift = Lift(h_nF.shape[1], config.model.lift_of(h_nF.shape[1]), config.seed)
    learnt_n = items.learnt(config.evaluation.held_out)
    names, classes = items.ids[learnt_n].tolist(), items.classes[learnt_n].tolist()
    training = Items(names, classes, encode(h_nF[learnt_n]))
    return solve(ClassSums.empty(lift), training, None, config.model.dim).head.settings


def _recall(
    h_nF: Floats, items: OldItems, queries: Floats, asked: Pairs, settings: HeadSettings, config: StreamConfig
) -> float:
    """Return, of the queries whose class has another item, the share whose nearest item is of it.

    The gallery is whole, as it will be served, but that no query finds its own item; and the head is solved without the
    items of all that ask, as it will not have learnt from what asks.
    """
    place = {item: row for row, item in enumerate(items.ids.tolist())}
    own_n = np.array([place.get(item, -1) for item in asked.ids], np.int64)
    learnt_n = items.learnt(config.evaluation.held_out)
    learnt_n[own_n[own_n >= 0]] = False
    codes = encode(h_nF)
    sums = ClassSums.of(
        Lift(h_nF.shape[1], settings.width, config.seed), codes[learnt_n], items.classes[learnt_n].tolist()
    )
    head = solve_head(sums, settings)
    known = head.known_dim > 0
    gallery = head.known_part(codes) if known else head.new_part(codes)
    z = head.split(head.embed(queries))[0 if known else 1]
    names = np.array(asked.classes, np.str_)
    sizes = Counter(items.classes.tolist())
    others_n = np.array([sizes[name] for name in names.tolist()], np.int64)
    others_n -= (own_n >= 0) & (items.classes[own_n] == names)
    counts_n = others_n > 0
    if not counts_n.any():
        return float("nan")
    scores = z @ gallery.T
    rows = np.flatnonzero(own_n >= 0)
    scores[rows, own_n[rows]] = -np.inf
    hits = items.classes[scores[counts_n].argmax(axis=1)] == names[counts_n]
    return float(hits.mean())


def _half(classes: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Return every second image of each class, of a random order."""
    rng, half = np.random.default_rng(seed), np.zeros(len(classes), bool)
    names = np.array(classes, np.str_)
    for name in np.unique(names):
        half[rng.permutation(np.flatnonzero(names == name))[::2]] = True
    return half


def _among_pairs(h_nF: Floats, pairs: Pairs, config: StreamConfig) -> float:
    """Return recall of pairs by some features of theirs in the gallery of all others."""
    named = replace(pairs, ids=tuple(map(str, range(len(pairs)))))
    items = OldItems(h_nF, np.array(pairs.classes, np.str_), np.array(named.ids, np.str_))
    settings = _settings(h_nF, items, config)
    folds_n = np.random.default_rng(config.seed).permutation(len(pairs)) % FOLDS
    parts = [folds_n == fold for fold in range(FOLDS)]
    found = [
        _recall(h_nF, items, h_nF[part], named.at(part), settings, config) for part in parts if part.any()
    ]
    return float(np.nanmean(found))


def _of_pairs(pairs: Pairs, config: StreamConfig, choice: Choice) -> Recalls:
    """Return what to expect where there are pairs alone, none of a class of the root: one half asks in the other."""
    half = _half(pairs.classes, config.seed)
    some, asked = pairs.at(half), pairs.at(~half)
    items = OldItems(some.old_nD, np.array(some.classes, np.str_), np.array([""] * len(some), np.str_))
    # Of a few pairs nothing can be left out to choose by, so no direction is trusted more than another.
    settings = HeadSettings(dim=config.model.dim, weighing="equal")
    nameless = replace(asked, ids=("-",) * len(asked))

    def recall(gallery: Floats, queries: Floats) -> float:
        return _recall(gallery, items, queries, nameless, settings, config)

    cross = fit_cross_map(asked.old_nD, asked.new_nF, asked.classes, config.seed, choice)
    cross = replace(cross, names=(), offsets_CF=cross.offsets_CF[:0])
    none = asked.at(np.zeros(len(asked), bool))
    drawn = (items.mapped(each, none) for each in _drawn(cross, items, none))
    mapped, within = _best([recall(h_nF, asked.new_nF) for h_nF in drawn])
    staying, reembedded = recall(some.old_nD, asked.old_nD), recall(some.new_nF, asked.new_nF)
    return Recalls(staying, mapped, reembedded, within)
