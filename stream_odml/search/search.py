"""Nearest neighbours by inner product over one immutable block of vectors: exact, or approximate above a size.

Protects: a searcher never changes after it was built (adding while searching is not safe in FAISS); what comes later is
searched beside it, exactly, until a larger searcher is built aside from a clone.
"""

from dataclasses import dataclass, replace
from typing import Any

import faiss as typed_faiss
import numpy as np

from stream_odml.search.calibration import matrix_path_from, use_best_path
from stream_odml.search.exact import Indices, Mask, inner_product, renumbered
from stream_odml.search.halves import MAX_K, Halves, worth_from
from stream_odml.search.index_kinds import (
    IVF,
    KINDS,
    Clusters,
    index_of,
    list_numbers,
    lists_for,
    with_direct_map,
)
from stream_odml.search.vectors import normalise_rows
from stream_odml.store.tables import FloatArray

# Its stubs do not know keyword arguments.
faiss: Any = typed_faiss
SAMPLE_QUERIES = 100
GATHER_BELOW = 0.25
"""Share of rows that pass a filter, below which copying them is cheaper than testing the filter at every row."""


@dataclass(frozen=True)
class SearchSettings:
    """How a snapshot searches."""

    kind: str = "auto"
    """exact; one of KINDS; or auto: exact, and ivf above `approximate_above`."""
    approximate_above: int = 300_000
    """Items above which auto takes ivf."""
    recall_target: float = 0.95
    """Share of the exact 10 nearest that an approximate search must find; ivf probes as many lists as that needs."""
    fresh_share: float = 0.1
    """Rows beside the main segment, as a share of it, above which they are merged into it."""
    threads: int = 1
    """FAISS threads of this process; more than one collapses when training shares the cores."""

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "exact", *KINDS):
            raise ValueError(f"search kind {self.kind!r}; choose auto, exact, {', '.join(KINDS)}")
        if not 0 < self.recall_target <= 1 or not 0 < self.fresh_share <= 1:
            raise ValueError("recall_target and fresh_share must be above 0 and at most 1")
        if self.threads < 1 or self.approximate_above < 1:
            raise ValueError("threads and approximate_above must be at least 1")


def search_exactly(
    vectors: FloatArray, queries: FloatArray, k: int, mask: Mask | None = None, halves: Halves | None = None
) -> tuple[FloatArray, Indices]:
    """Return scores and row numbers [nq, k] of the nearest `vectors` [n, d], perhaps only where `mask` [n] is set. With
    `halves` of the same rows, many queries at once are answered by them."""
    n, dim = vectors.shape
    use_best_path(dim)
    if mask is None:
        if halves is not None and k <= MAX_K and len(queries) >= worth_from(dim):
            return halves.nearest(queries, vectors, k)
        return inner_product(queries, vectors, k)
    if np.count_nonzero(mask) < GATHER_BELOW * n or len(queries) >= matrix_path_from(dim):
        rows = np.flatnonzero(mask)
        scores, found = inner_product(queries, vectors[rows], k)
        return scores, renumbered(found, rows)
    return inner_product(queries, vectors, k, mask)


@dataclass(eq=False)
class IndexSearcher:
    """An index of one of KINDS over a copy of the vectors."""

    kind: str
    index: Any
    width: int
    """Lists (ivf) or candidates (hnsw) that a search visits."""
    recall: float
    exhaustive: bool = False
    """Whether it must probe more than half of its lists to reach its recall."""
    fresh_width: int = 0
    """The width when its clusters were new from k-means."""

    @property
    def n(self) -> int:
        return int(self.index.ntotal)

    @property
    def nbytes(self) -> int:
        return self.n * KINDS[self.kind].bytes_per_row(self.index)

    def search(self, queries: FloatArray, k: int, mask: Mask | None = None) -> tuple[FloatArray, Indices]:
        kind, width = KINDS[self.kind], self.width
        mask = None if mask is None else mask[: self.n]
        there = min(k, self.n if mask is None else int(np.count_nonzero(mask)))
        while True:
            scores, rows = kind.search(self.index, queries, k, width, mask)
            # What was visited may hold fewer rows than are asked for.
            if width >= kind.max_width(self.index) or (rows[:, :there] >= 0).all():
                return scores, rows
            width *= 2

    def grown(self, fresh: FloatArray) -> "IndexSearcher":
        """Return a searcher with `fresh` [m, d] appended; this one does not change."""
        index = faiss.clone_index(self.index)
        index.add(np.ascontiguousarray(fresh))
        return replace(self, index=index)

    def clusters(self, rows: Indices) -> Clusters:
        """Return the clusters of vectors whose row i is row `rows[i]` here (-1: new), of a searcher of kind ivf."""
        return Clusters(renumbered(rows, list_numbers(self.index)), int(self.index.nlist), self.fresh_width)

    def vectors(self, rows: Indices) -> FloatArray:
        """Return float32 vectors [len(rows), d] as the index holds them."""
        found: FloatArray = self.index.reconstruct_batch(rows)
        return found


def build_searcher(
    vectors: FloatArray, settings: SearchSettings, clusters: Clusters | None = None
) -> IndexSearcher | None:
    """Build an index over normalised `vectors` [n, d], of the kind that the settings give for n; None where they are to
    be searched exactly. `clusters` of an earlier one are reused: k-means runs again once they need twice the probes."""
    faiss.omp_set_num_threads(settings.threads)
    use_best_path(vectors.shape[1])
    kind = settings.kind
    if kind == "auto":
        kind = IVF if len(vectors) > settings.approximate_above else "exact"
    if kind == "exact" or len(vectors) == 0:
        return None
    if kind == IVF and clusters is not None and lists_for(len(vectors)) <= 2 * clusters.count:
        kept = _tuned(kind, with_direct_map(index_of(vectors, clusters)), vectors, settings)
        if kept.recall >= settings.recall_target and kept.width <= 2 * clusters.width:
            kept.fresh_width = clusters.width
            return kept
    built = _tuned(kind, KINDS[kind].build(vectors), vectors, settings)
    built.fresh_width = built.width
    # Vectors without clusters need every list probed: then the exact search is faster, and right.
    return None if settings.kind == "auto" and built.exhaustive else built


def _tuned(kind: str, index: Any, vectors: FloatArray, settings: SearchSettings) -> IndexSearcher:
    """Widen the search until the recall of a sample reaches the target, or the width its maximum."""
    of_kind = KINDS[kind]
    max_width = of_kind.max_width(index)
    if not max_width:
        return IndexSearcher(kind, index, 0, 1.0)
    sample = _sample_queries(vectors)
    k = min(10, len(vectors))
    _, exact = inner_product(sample, vectors, k)
    width, recall = min(8, max_width), 0.0
    while True:
        _, found = of_kind.search(index, sample, k, width, None)
        recall = float(
            np.mean([len(set(a) & set(b)) / k for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
        )
        if recall >= settings.recall_target or width >= max_width:
            return IndexSearcher(kind, index, width, recall, kind == IVF and width > max_width // 2)
        width = min(2 * width, max_width)


def _sample_queries(vectors: FloatArray) -> FloatArray:
    """Draw queries like new images: near items, but no items, as an item itself is found more easily."""
    near, off = np.random.default_rng(0).integers(len(vectors), size=(2, SAMPLE_QUERIES))
    sample: FloatArray = vectors[near] + np.float32(0.25) * vectors[off]
    normalise_rows(sample)
    return sample
