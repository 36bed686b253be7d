"""Which items of a root that was taken over by a map are embedded again first: those of which the map knows least,
where that may cost most.

Two things are known of a mapped item without its image. What least squares predicts is the mean of the features that
the item may have, which are of length 1: their variance about it is what its squared length lacks of 1. And how much
nearer it is to its own class than to any other, as a head of the pairs compares them. Both count alike.
"""

# n items   C classes   D new feature   d head

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_odml.exchange.pairs import Pairs
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.cross_map import CrossMap
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Lift

WORST_SHARE = 0.2
"""Of the mapped items, that are embedded before all others. Each shard is read once for them and once for the rest."""
COMPARED_AT_ONCE = 1024
Floats = NDArray[np.float32]


class Worst(NamedTuple):
    """What is known of one shard: the mean of what the map misses of its items, and which rows are among the worst, as
    `ShardState.worst_rows` reads them."""

    error: float
    rows: str


class Examiner:
    """Says of mapped items what the map misses, and how near they are to another class."""

    def __init__(self, cross: CrossMap, pairs: Pairs) -> None:
        self._cross = replace(cross, within=1.0)
        sums = ClassSums.of(Lift(len(cross.b_F)), encode(pairs.new_nF), pairs.classes)
        # Nothing is left out of pairs to choose by, so no direction is trusted more than another.
        self._head = solve_head(sums, HeadSettings(weighing="equal"))
        self._place = {name: place for place, name in enumerate(cross.names)}
        self._centres_Cd = self._embedded(cross.centres_CF)

    def __call__(self, h_nD: Floats, classes: Sequence[str]) -> tuple[Floats, Floats]:
        """Return 1 - |prediction|² [n], above 0; and [n] the cosine with the centre of the nearest other class less
        that with the centre of the own one, NaN where either is not known."""
        predicted_nF = self._cross.apply(h_nD, classes)
        missed_n = np.maximum(1 - np.einsum("nf,nf->n", predicted_nF, predicted_nF), np.float32(1e-6))
        rivalry_n = np.full(len(classes), np.nan, np.float32)
        places_n = np.array([self._place.get(name, -1) for name in classes], np.int64)
        named = np.flatnonzero(places_n >= 0) if len(self._centres_Cd) > 1 else np.empty(0, np.int64)
        for at in range(0, len(named), COMPARED_AT_ONCE):
            some = named[at : at + COMPARED_AT_ONCE]
            near_nC = self._embedded(predicted_nF[some]) @ self._centres_Cd.T
            own = np.arange(len(some)), places_n[some]
            own_n = near_nC[own]
            near_nC[own] = -np.inf
            rivalry_n[some] = near_nC.max(axis=1) - own_n
        return missed_n, rivalry_n

    def _embedded(self, h_nF: Floats) -> Floats:
        return self._head.split(self._head.embed(h_nF))[0 if self._head.known_dim else 1]


def worst_of_shards(
    missed_n: Floats,
    rivalry_n: Floats,
    rows_n: NDArray[np.int64],
    shards: Mapping[str, tuple[int, int]],
    share: float = WORST_SHARE,
) -> dict[str, Worst]:
    """Return it for shards of which the first item and the one behind the last are given.

    `missed_n`: of each item, 0 where it is exact; `rows_n`: its number in its shard. Of items that are alike the first
    are worse, so that it is the same whoever computes it.
    """
    mapped = np.flatnonzero(missed_n)
    score_m = _standardized(missed_n[mapped]) + _standardized(rivalry_n[mapped])
    chosen_n = np.zeros(len(missed_n), bool)
    chosen_n[mapped[np.argsort(-score_m, kind="stable")[: round(share * len(mapped))]]] = True
    found = {}
    for shard, (start, end) in shards.items():
        error = float(missed_n[start:end].mean()) if end > start else 0.0
        own = rows_n[start:end][chosen_n[start:end]]
        bits = np.zeros(own.max(initial=-1) + 1, bool)
        bits[own] = True
        found[shard] = Worst(error, np.packbits(bits).tobytes().hex())
    return found


def _standardized(values_m: Floats) -> NDArray[np.float64]:
    """Return values of mean 0 and deviation 1; 0 where a value is not known."""
    known = np.isfinite(values_m)
    found_m = np.zeros(len(values_m))
    if known.any():
        values = values_m[known].astype(np.float64)
        found_m[known] = (values - values.mean()) / max(float(values.std()), 1e-12)
    return found_m
