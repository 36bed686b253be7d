"""What recall an upgrade will serve, measured before it is made.

Pairs that the map of a fold has not seen ask, in the gallery as it would be: all items by that map, the other pairs
exact, and the head solved with them. What is expected is so of the real density of items, not of that of the pairs.
"""

# n items or pairs   D old feature   F new feature

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from stream_odml.config.stream import StreamConfig
from stream_odml.exchange.pairs import Pairs
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.cross_map import Choice, CrossMap, fit_cross_map
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift
from stream_odml.pipeline.head_solving import Items, solve
from stream_odml.zero import unit_rows

FOLDS = 10
MAX_ITEMS = 20_000
"""Items of the gallery that is asked; of a larger root, at random: recall is then a little underestimated."""
Floats = NDArray[np.float32]
Strings = NDArray[np.str_]


@dataclass(frozen=True, eq=False)
class OldItems:
    """Labelled items of the root, by the features that are stored."""

    h_nD: Floats
    classes: Strings
    ids: Strings

    def mapped(self, cross: CrossMap, exact: Pairs) -> Floats:
        """Return new features: predicted, and of items that are pairs the true ones."""
        found_nF = cross.apply(self.h_nD, self.classes.tolist())
        place = {item: row for row, item in enumerate(exact.ids) if item}
        rows = np.array([place.get(item, -1) for item in self.ids.tolist()], np.int64)
        found_nF[rows >= 0] = unit(exact.new_nF[rows[rows >= 0]])
        return found_nF


def unit(h_nF: Floats) -> Floats:
    """Return directions: beside predicted features, which are of about length 1, true ones have that length too."""
    return np.asarray(unit_rows(h_nF), np.float32)


def expected_recalls(
    pairs: Pairs, items: OldItems, config: StreamConfig, choice: Choice, cross: CrossMap
) -> tuple[float, float, float]:
    """Return recall@1 of staying, of mapped items and of embedded ones.

    Of the last only the pairs are known: theirs, in a gallery of pairs, is taken to the density of the root by the
    share of errors that the old model loses on that way.
    """
    old_few, new_few = _of_pairs(pairs, _half(pairs.classes, config.seed), config)
    if not set(pairs.classes) & set(items.classes.tolist()):
        return old_few, _mapped_of_pairs(pairs, config, choice), new_few
    whole_nF = items.mapped(cross, pairs)
    before, after = (_settings(h, items, config) for h in (items.h_nD, whole_nF))
    found: list[tuple[float, float]] = []
    folds_n = np.random.default_rng(config.seed).permutation(len(pairs)) % FOLDS
    for fold in range(FOLDS):
        seen, asked = pairs.at(folds_n != fold), pairs.at(folds_n == fold)
        one = fit_cross_map(seen.old_nD, seen.new_nF, seen.classes, config.seed, choice)
        found.append(
            (
                _recall(items.h_nD, items, asked.old_nD, asked, before, config.seed),
                _recall(items.mapped(one, seen), items, asked.new_nF, asked, after, config.seed),
            )
        )
    staying, mapped = np.nanmean(found, axis=0).tolist()
    denser = min(1.0, (1 - staying) / max(1 - old_few, 1e-3))
    return staying, mapped, max(mapped, 1 - (1 - new_few) * denser)


def _settings(h_nF: Floats, items: OldItems, config: StreamConfig) -> HeadSettings:
    """Those that the first stage will choose."""
    lift = Lift(h_nF.shape[1], config.model.lift_of(h_nF.shape[1]), config.seed)
    training = Items(items.ids.tolist(), items.classes.tolist(), encode(h_nF))
    return solve(ClassSums.empty(lift), training, None, config.model.dim).head.settings


def _recall(
    h_nF: Floats, items: OldItems, queries: Floats, asked: Pairs, settings: HeadSettings, seed: int
) -> float:
    """Of queries whose class has another item, the share whose nearest item is of it; the query's own item is gone."""
    own = set(asked.ids)
    there = np.array([item not in own for item in items.ids.tolist()])
    codes, classes = encode(h_nF[there]), items.classes[there]
    head = solve_head(
        ClassSums.of(Lift(h_nF.shape[1], settings.width, seed), codes, classes.tolist()), settings
    )
    known = head.known_dim > 0
    gallery = head.known_part(codes) if known else head.new_part(codes)
    z = head.split(head.embed(queries))[0 if known else 1]
    names = np.array(asked.classes, np.str_)
    counts = np.isin(names, np.unique(classes))
    if not counts.any():
        return float("nan")
    hits = classes[(z[counts] @ gallery.T).argmax(axis=1)] == names[counts]
    return float(hits.mean())


def _half(classes: Sequence[str], seed: int) -> NDArray[np.bool_]:
    """Every second image of each class, of a random order."""
    rng, half = np.random.default_rng(seed), np.zeros(len(classes), bool)
    names = np.array(classes, np.str_)
    for name in np.unique(names):
        half[rng.permutation(np.flatnonzero(names == name))[::2]] = True
    return half


def _of_pairs(pairs: Pairs, half: NDArray[np.bool_], config: StreamConfig) -> tuple[float, float]:
    """Recall of staying and of embedding anew where pairs are all there is: one half asks, the other is the gallery."""
    found = []
    for h in (pairs.old_nD, pairs.new_nF):
        some, asked = pairs.at(half), pairs.at(~half)
        items = OldItems(h[half], np.array(some.classes, np.str_), np.array([""] * len(some), np.str_))
        nameless = Pairs(asked.old_nD, asked.new_nF, asked.classes, ("-",) * len(asked))
        found.append(
            _recall(h[half], items, h[~half], nameless, HeadSettings(dim=config.model.dim), config.seed)
        )
    return found[0], found[1]


def _mapped_of_pairs(pairs: Pairs, config: StreamConfig, choice: Choice) -> float:
    """The same of mapped ones, where no pair is of a class of the root."""
    half = _half(pairs.classes, config.seed)
    some, asked = pairs.at(half), pairs.at(~half)
    cross = fit_cross_map(asked.old_nD, asked.new_nF, asked.classes, config.seed, choice)
    items = OldItems(some.old_nD, np.array(some.classes, np.str_), np.array([""] * len(some), np.str_))
    nameless = Pairs(asked.old_nD, asked.new_nF, asked.classes, ("-",) * len(asked))
    settings = HeadSettings(dim=config.model.dim)
    return _recall(cross.apply(items.h_nD), items, asked.new_nF, nameless, settings, config.seed)
