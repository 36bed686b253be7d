"""Vectors that are searched together: a main part with an index where they are many, fresh ones exactly beside it.

Protects: a segment never changes; growing gives another one that shares what it can.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from stream_odml.search.columns import Growable
from stream_odml.search.exact import Indices, Mask, merge_top
from stream_odml.search.halves import MIN_ROWS, NEVER, Halves, worth_from
from stream_odml.search.index_kinds import Clusters
from stream_odml.search.search import IndexSearcher, SearchSettings, build_searcher, search_exactly
from stream_odml.store.tables import FloatArray

MAX_FRESH_ROWS = 1024
LISTS_SEARCHED = 1 / 16
"""Share of the vectors, about, that an approximate search compares."""


@dataclass(frozen=True, eq=False)
class Segment:
    """Normalised vectors."""

    main: IndexSearcher | None
    """Covers the first `main.n`; None when all are searched exactly."""
    fresh: Growable
    """Those behind `main`."""
    halves: Halves | None
    """Of `fresh`, where they make batches faster."""
    settings: SearchSettings

    @classmethod
    def of(cls, vectors: Growable, settings: SearchSettings, clusters: Clusters | None = None) -> Segment:
        """Return a segment of `vectors`; `clusters` of an earlier one stay while they serve."""
        return cls(None, vectors, None, settings)._merged(clusters)

    @property
    def dim(self) -> int:
        """Return the dimension of the vectors."""
        return int(self.fresh.rows.shape[1])

    @property
    def n(self) -> int:
        """Return how many there are."""
        return self.split + len(self.fresh)

    @property
    def split(self) -> int:
        """Where the fresh ones begin."""
        return self.main.n if self.main else 0

    @property
    def multiplications(self) -> float:
        """Of one query, about."""
        share = 1.0 if self.main is None or self.main.kind == "fp16" else LISTS_SEARCHED
        return self.dim * (len(self.fresh) + self.split * share)

    def grown(self, rows: FloatArray) -> Segment:
        """Return a segment with `rows` [m, dim] behind the others."""
        return replace(self, fresh=self.fresh.grown(rows))._merged()

    def taken(self, rows: Indices) -> Segment:
        """Return these rows only, of a segment without a main part."""
        return Segment.of(Growable.of(self.fresh.rows[rows]), self.settings)

    def nearest(self, queries: FloatArray, k: int, mask: Mask | None = None) -> tuple[FloatArray, Indices]:
        """Return cosines and row numbers [nq, k] for normalised `queries` [nq, dim]; -1 where fewer are there."""
        split, parts = self.split, []
        if self.main is not None:
            parts.append(self.main.search(queries, k, None if mask is None else mask[:split]))
        if len(self.fresh) or not parts:
            mine = None if mask is None else mask[split:]
            scores, rows = search_exactly(self.fresh.rows, queries, k, mine, self.halves)
            parts.append((scores, np.where(rows < 0, -1, rows + split)))
        return merge_top(parts, k)

    def vectors(self, rows: Indices) -> FloatArray:
        """Return float32 [len(rows), dim]."""
        out = np.empty((len(rows), self.dim), dtype=np.float32)
        late = rows >= self.split
        out[late] = self.fresh.rows[rows[late] - self.split]
        if self.main is not None and not late.all():
            out[~late] = self.main.vectors(rows[~late])
        return out

    def memory(self) -> dict[str, int]:
        """Return bytes by what holds them."""
        return {
            "vectors": self.fresh.rows.nbytes,
            "halves": self.halves.nbytes if self.halves else 0,
            "index": self.main.nbytes if self.main else 0,
        }

    def _merged(self, clusters: Clusters | None = None) -> Segment:
        """Return a segment with the fresh ones in the main part if they, or all for exact search, are too many."""
        main = self.main
        fresh = self.fresh.rows
        if main is None:
            main = build_searcher(fresh, self.settings, clusters)
            if main is None:
                return replace(self, halves=_halves(self.halves, fresh))
        elif len(fresh) <= max(MAX_FRESH_ROWS, self.settings.fresh_share * main.n):
            return self
        else:
            main = main.grown(fresh)
        return replace(self, main=main, fresh=Growable.empty(0, self.dim, dtype=np.float32), halves=None)


def _halves(held: Halves | None, rows: FloatArray) -> Halves | None:
    dim = rows.shape[1]
    if len(rows) < MIN_ROWS or worth_from(dim) == NEVER:
        return None
    held = held or Halves.empty(dim)
    return held.grown(rows[len(held) :])
