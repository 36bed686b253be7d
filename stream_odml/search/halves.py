"""The nearest of many queries at once, exactly, by a first pass over rows in half precision (bfloat16).

A matrix product in halves takes a third of the time. It cannot say which rows are nearest, but how far off it can be is
bounded, so it says which few rows can be; those are compared in full. With x' and q' the halves of a row and a query,

    |<q, x> - <q', x'>|  <=  |q - q'| |x| + |q'| |x - x'| + what fp32 loses in d sums

where |q - q'| and the largest |x - x'| are measured, and |x| <= 1. The product is returned as a half itself: rounding
to the nearest keeps the order, so a bound rounded in the same way is still one.

FAISS's scan of half-precision codes with refinement is quicker for up to eight queries, and takes 2.8 and 4.1 times as
long for 32 and 64 of them (10^6 x 128, two cores, side by side).
"""

from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from stream_odml.search.calibration import best_seconds
from stream_odml.search.columns import Growable
from stream_odml.search.exact import Indices, inner_product, merge_top
from stream_odml.search.vectors import normalise_rows
from stream_odml.store.tables import FloatArray

TILE = 32
BLOCK = 512 * TILE
"""Rows of one product: it and its sums stay in a core's cache."""
QUERIES_AT_ONCE = 64
MAX_K = 128
"""Maximum neighbours per query that are searched for in this way."""
MAX_CANDIDATES_PER_TILE = 512
"""Rows of a block for each query that are compared one by one; where more are that close, the whole block is."""
MIN_ROWS = BLOCK
"""From how many rows on halves are kept: fewer are searched in a millisecond."""
BATCHES = (2, 4, 8, 16, 32)
NEVER = 1 << 30
HALF = 2.0**-8
"""Largest relative error of rounding to bfloat16."""
ROUNDING_MARGIN = 1.01
"""For the rounding of the bounds themselves, and rows whose norm is 1 + 1e-6."""


@dataclass(frozen=True, eq=False)
class Halves:
    """Normalised rows rounded to bfloat16. Growing leaves what was there as it is, like `Growable`."""

    bits: Growable
    """int16 [n, d]: numpy has no such type."""
    off: float
    """Largest distance of a row from its half."""

    @staticmethod
    def empty(dim: int) -> "Halves":
        """Return the halves of no rows."""
        return Halves(Growable.empty(0, dim, dtype=np.int16), 0.0)

    def __len__(self) -> int:
        return len(self.bits)

    def grown(self, rows: FloatArray) -> "Halves":
        """Return halves with `rows` [m, d] behind the others."""
        fresh, off = Growable.empty(*rows.shape, dtype=np.int16), self.off
        for start in range(0, len(rows), BLOCK):
            part, lost = _rounded(rows[start : start + BLOCK])
            fresh.rows[start : start + BLOCK] = part.view(_torch().int16).numpy()
            off = max(off, float(lost.max()))
        return Halves(self.bits.grown(fresh.rows) if len(self) else fresh, off)

    @property
    def nbytes(self) -> int:
        return self.bits.rows.nbytes

    def nearest(self, queries: FloatArray, rows: FloatArray, k: int) -> tuple[FloatArray, Indices]:
        """Search as `exact.inner_product` does, for the `rows` [n, d] that these are the halves of."""
        parts = [
            self._nearest(queries[start : start + QUERIES_AT_ONCE], rows, k)
            for start in range(0, len(queries), QUERIES_AT_ONCE)
        ]
        return np.concatenate([scores for scores, _ in parts]), np.concatenate([found for _, found in parts])

    def _nearest(self, queries: FloatArray, rows: FloatArray, k: int) -> tuple[FloatArray, Indices]:
        torch = _torch()
        halves = torch.from_numpy(self.bits.rows).view(torch.bfloat16)
        asked, lost = _rounded(queries)
        error = self.error(asked.float().norm(dim=1), lost)
        tiled = len(self) - len(self) % TILE
        best = inner_product(queries, rows[tiled:], k)
        best[1][best[1] >= 0] += tiled
        for start in range(0, tiled, BLOCK):
            end = min(start + BLOCK, tiled)
            scores = torch.matmul(halves[start:end], asked.T).float()
            floor = torch.from_numpy(best[0][:, -1])
            found = _within(scores.view(-1, TILE, len(queries)), floor, error, k)
            if found is None:
                more = inner_product(queries, rows[start:end], k)
            else:
                places, query = found
                exact = np.einsum("nd,nd->n", rows[start:end][places], queries[query])
                more = _spread(query, exact, places, len(queries))
            more[1][more[1] >= 0] += start
            best = merge_top([best, more], k)
        return best

    def error(self, norms: Any, lost: Any) -> Any:
        """Return how far the product of halves can be from that of full queries, before it is rounded: [nq]."""
        sums = 4 * self.bits.rows.shape[1] * 2.0**-24
        return ROUNDING_MARGIN * (lost + norms * self.off + sums)


def _within(tiles: Any, floor: Any, error: Any, k: int) -> tuple[Indices, Indices] | None:
    """Return rows that can be among the `k` best, and the query of each; None if they are too many. `tiles` [t, TILE,
    nq] are the sums of halves; `floor` [nq] is what k rows are known to reach."""
    torch = _torch()
    peaks = tiles.amax(1)
    if bool(floor.isinf().any()) and len(peaks) >= k:  # nothing is known, but the k highest peaks are k rows
        reached = peaks.topk(k, dim=0).values[-1]
        floor = torch.maximum(floor, reached - error - ROUNDING_MARGIN * HALF * reached.abs())
    reach = (floor - error).bfloat16().float()
    tile, query = torch.nonzero(peaks >= reach, as_tuple=True)
    if len(tile) > MAX_CANDIDATES_PER_TILE * tiles.shape[2]:
        return None
    hit, place = torch.nonzero(tiles[tile, :, query] >= reach[query, None], as_tuple=True)
    if len(hit) > MAX_CANDIDATES_PER_TILE * tiles.shape[2]:
        return None
    return (tile[hit] * TILE + place).numpy(), query[hit].numpy()


def _spread(query: Indices, scores: FloatArray, rows: Indices, nq: int) -> tuple[FloatArray, Indices]:
    """Return pairs of query and row as [nq, m]; -inf and -1 where a query has fewer than m."""
    order = np.argsort(query, kind="stable")
    counts = np.bincount(query, minlength=nq)
    places = np.arange(len(query)) - np.repeat(np.cumsum(counts) - counts, counts)
    wide = int(counts.max()) if len(query) else 0
    table, found = np.full((nq, wide), -np.inf, np.float32), np.full((nq, wide), -1, np.int64)
    table[query[order], places], found[query[order], places] = scores[order], rows[order]
    return table, found


def _rounded(rows: FloatArray) -> tuple[Any, Any]:
    """Return bfloat16 [n, d], and how far each row is from it [n]."""
    full = _torch().from_numpy(rows)
    halves = full.bfloat16()
    return halves, (full - halves.float()).norm(dim=1)


def _torch() -> Any:
    import torch  # here, so that who reads a store and searches nothing (driver, command line) does not load it

    return torch


@cache
def worth_from(dim: int) -> int:
    """Return from how many queries on this is the faster way, measured once a process and dimension in about 0.2 s. A
    machine without instructions for halves takes longer; one whose sums were not those of the bound would answer
    otherwise. NEVER on both."""
    rows = np.random.default_rng(0).standard_normal((MIN_ROWS, dim), dtype=np.float32)
    normalise_rows(rows)
    halves = Halves.empty(dim).grown(rows)
    for batch in BATCHES:
        queries = rows[:batch].copy()
        if not np.allclose(
            halves.nearest(queries, rows, 10)[0], inner_product(queries, rows, 10)[0], atol=1e-5
        ):
            return NEVER
        ours, others = (
            best_seconds(partial(way, queries, rows, 10)) for way in (halves.nearest, inner_product)
        )
        if ours < others:
            return batch
    return NEVER
