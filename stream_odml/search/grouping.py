"""The best items of each of the nearest classes, exactly, by work that does not grow with how far apart they lie.

The nearest rows of all give most of it. What they leave open is looked for where it can be: how many items each class
can give is known beforehand, so that a class is complete with its last one; a class that is not is compared as a whole,
and classes that are missing yet are searched for among all others.
"""

# n items   m rows found   w wanted

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from stream_odml.search.exact import Indices, Mask
from stream_odml.search.hits import Hit, hits_of
from stream_odml.store.tables import FloatArray

if TYPE_CHECKING:
    from stream_odml.search.snapshot import GallerySnapshot

WIDEN_FACTOR = 8
BLOCK = 8192
"""Rows of a class compared at a time."""


class _Found(NamedTuple):
    """Scores and rows [m], the best first."""

    scores: FloatArray
    rows: Indices

    def at(self, places: Indices | Mask) -> _Found:
        return _Found(self.scores[places], self.rows[places])

    def plus(self, scores: FloatArray, rows: Indices) -> _Found:
        scores, rows = np.concatenate([self.scores, scores]), np.concatenate([self.rows, rows])
        return _Found(scores, rows).at(np.argsort(-scores, kind="stable"))


class _Members:
    """The items that may be found, by class."""

    def __init__(self, source: GallerySnapshot, mask: Mask | None) -> None:
        self.classes: Indices = source.columns.array("class_name")
        self.living = np.ones(len(self.classes), bool) if mask is None else mask.copy()
        self.living[source.dead] = False
        self.counts = np.bincount(self.classes[self.living], minlength=1)
        self._ordered: Indices | None = None

    def others(self, codes: Indices) -> Mask:
        """Return where an item is of another class than these."""
        wanted = np.ones(int(self.classes.max(initial=0)) + 1, bool)
        wanted[codes] = False
        return self.living & wanted[self.classes]

    def of(self, code: int) -> Indices:
        """Return the rows of a class."""
        if self._ordered is None:
            rows = np.flatnonzero(self.living)
            # numpy sorts short numbers in linear time.
            codes = self.classes[rows].astype(np.uint16 if len(self.counts) < 1 << 16 else np.int32)
            self._ordered = rows[np.argsort(codes, kind="stable")]
        end = int(self.counts[: code + 1].sum())
        return self._ordered[end - int(self.counts[code]) : end]


def grouped(
    source: GallerySnapshot, queries: FloatArray, groups: int, size: int, mask: Mask | None
) -> list[list[Hit]]:
    """Return the `size` best items of each of the `groups` nearest classes, as many as there are, for each query:
    the best first, whatever its class."""
    members = _Members(source, mask)
    wide = max(1, min(int(members.counts.sum()), groups * size * WIDEN_FACTOR))
    found = [
        _kept(_Found(scores, rows).at(rows >= 0), members, groups, size)
        for scores, rows in zip(*source.nearest(queries, wide, mask), strict=True)
    ]
    reach = min(groups, int(np.count_nonzero(members.counts)))
    for place, query in enumerate(queries):
        found[place] = _with_missing(source, query[None], found[place], members, wide, reach, size)
    _complete(source, queries, found, members, size)
    return [hits_of(source.columns, f.scores[None], f.rows[None])[0] for f in found]


def _kept(found: _Found, members: _Members, groups: int, size: int) -> _Found:
    """Return the best `size` of each of the first `groups` classes."""
    if not len(found.rows):
        return found
    _, first, code = np.unique(members.classes[found.rows], return_index=True, return_inverse=True)
    counts = np.bincount(code)
    order = np.argsort(code, kind="stable")
    rank = np.empty(len(code), np.int64)
    rank[order] = np.arange(len(code)) - np.repeat(np.cumsum(counts) - counts, counts)
    chosen = np.zeros(len(first), bool)
    chosen[np.argsort(first)[:groups]] = True
    return found.at(chosen[code] & (rank < size))


def _with_missing(
    source: GallerySnapshot,
    query: FloatArray,
    found: _Found,
    members: _Members,
    wide: int,
    reach: int,
    size: int,
) -> _Found:
    """Return what was found with the nearest of the missing classes, up to `reach`; each round finds at least one."""
    present = np.unique(members.classes[found.rows])
    while len(present) < reach:
        scores, rows = (part[0] for part in source.nearest(query, wide, members.others(present)))
        new = _kept(_Found(scores, rows).at(rows >= 0), members, reach - len(present), size)
        if not len(new.rows):  # an approximate index looks no further
            break
        found, present = found.plus(*new), np.union1d(present, members.classes[new.rows])
        wide = min(2 * wide, len(members.classes))
    return found


def _complete(
    source: GallerySnapshot, queries: FloatArray, found: list[_Found], members: _Members, size: int
) -> None:
    """Give each class that is there all the items it can, by comparing every one of its own."""
    asking: dict[int, list[int]] = {}
    for place, one in enumerate(found):
        codes, counts = np.unique(members.classes[one.rows], return_counts=True)
        for code in codes[counts < np.minimum(members.counts[codes], size)].tolist():
            asking.setdefault(code, []).append(place)
    for code, places in asking.items():
        best = _best_of(source, queries[places], members.of(code), size)
        for place, scores, rows in zip(places, *best, strict=True):
            others = found[place].at(members.classes[found[place].rows] != code)
            found[place] = others.plus(scores, rows)


def _best_of(
    source: GallerySnapshot, queries: FloatArray, rows: Indices, size: int
) -> tuple[FloatArray, Indices]:
    """Return the `size` best of these rows, [nq, w] of each."""
    scores, found = np.empty((len(queries), 0), np.float32), np.empty((len(queries), 0), np.int64)
    for start in range(0, len(rows), BLOCK):
        block = rows[start : start + BLOCK]
        scores = np.concatenate([scores, source.scores(queries, block)], axis=1)
        found = np.concatenate([found, np.broadcast_to(block, (len(queries), len(block)))], axis=1)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :size]
        scores, found = np.take_along_axis(scores, order, 1), np.take_along_axis(found, order, 1)
    return scores, found
