"""Nearest neighbours by inner product over one immutable block of vectors: exact, or approximate above a size.

Protects: a searcher never changes after it was built (adding while searching is not safe in FAISS); what comes later is
searched beside it, exactly, until a larger searcher is built aside from a clone.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import faiss as typed_faiss
import numpy as np

from stream_odml.search.calibration import matrix_path_from, use_best_path
from stream_odml.search.clusters import Clusters, index_of, lists_of
from stream_odml.search.exact import Indices, Mask, inner_product, selector_of
from stream_odml.search.halves import WIDEST, Halves, worth_from
from stream_odml.search.vectors import normalise_rows
from stream_odml.store.tables import FloatArray

faiss: Any = typed_faiss  # its stubs know no keyword arguments
Kind = Literal["auto", "exact", "fp16", "ivf", "hnsw"]
SAMPLE = 100
GATHER_BELOW = 0.25
"""Share of rows that a filter keeps, under which copying them out is cheaper than asking the filter at every row."""


@dataclass(frozen=True)
class SearchSettings:
    """How a snapshot searches."""

    kind: Kind = "auto"
    """exact; fp16 (exact over half-precision vectors, half the memory); ivf or hnsw; auto: exact, and ivf above."""
    approximate_above: int = 300_000
    """Items above which auto takes ivf."""
    recall_target: float = 0.95
    """Share of the exact 10 nearest that an approximate search must find; ivf probes as many lists as that needs."""
    fresh_share: float = 0.1
    """Rows beside the main segment, as a share of it, above which they are merged into it."""
    threads: int = 1
    """FAISS threads of this process; more than one collapses when training shares the cores."""

    def __post_init__(self) -> None:
        if self.kind not in ("auto", "exact", "fp16", "ivf", "hnsw"):
            raise ValueError(f"search kind {self.kind!r}; choose auto, exact, fp16, ivf or hnsw")
        if not 0 < self.recall_target <= 1 or not 0 < self.fresh_share <= 1:
            raise ValueError("recall_target and fresh_share must be above 0 and at most 1")
        if self.threads < 1 or self.approximate_above < 1:
            raise ValueError("threads and approximate_above must be at least 1")

    def kind_for(self, n: int) -> Kind:
        """What to build for ``n`` items."""
        if self.kind != "auto":
            return self.kind
        return "ivf" if n > self.approximate_above else "exact"


class Searcher(Protocol):
    """Immutable; safe for many threads."""

    kind: str
    n: int
    recall: float
    """Of the exact 10 nearest, measured when it was built; 1.0 for exact ones."""
    build_s: float

    @property
    def nbytes(self) -> int:
        """What it holds beside the vectors that it was built from."""
        ...

    def search(self, queries: FloatArray, k: int, mask: Mask | None = None) -> tuple[FloatArray, Indices]:
        """Scores [nq, k] descending and row numbers [nq, k]; -1 where fewer than k rows are to be had."""
        ...


class ExactSearcher:
    """Flat search over the array itself: no copy, so a growing buffer is searched by a view of its prefix.

    With ``halves`` of the same rows, many queries at once are answered by them.
    """

    kind = "exact"
    recall = 1.0
    build_s = 0.0
    nbytes = 0

    def __init__(self, vectors: FloatArray, halves: Halves | None = None) -> None:
        self._vectors = np.ascontiguousarray(vectors)
        self._halves = halves
        self.n, self._dim = vectors.shape
        use_best_path(self._dim)

    def search(self, queries: FloatArray, k: int, mask: Mask | None = None) -> tuple[FloatArray, Indices]:
        if mask is None:
            if self._halves is not None and k <= WIDEST and len(queries) >= worth_from(self._dim):
                return self._halves.nearest(queries, self._vectors, k)
            return inner_product(queries, self._vectors, k)
        kept = int(mask[: self.n].sum())
        if kept < GATHER_BELOW * self.n or len(queries) >= matrix_path_from(self._dim):
            rows = np.flatnonzero(mask[: self.n])
            return _named(inner_product(queries, self._vectors[rows], k), rows)
        return inner_product(queries, self._vectors, k, mask)


class IndexSearcher:
    """A FAISS index (fp16, ivf, hnsw) over a copy of the vectors."""

    def __init__(self, kind: str, index: Any, search_parameters: Any, recall: float, build_s: float) -> None:
        self.kind = kind
        self.n = int(index.ntotal)
        self.recall = recall
        self.build_s = build_s
        self.exhaustive = False
        """Whether it had to be set to look everywhere to reach its recall."""
        self.width = 0
        """Lists (ivf) or candidates (hnsw) that it looks at."""
        self.fresh_width = 0
        """The same, when its clusters were fresh from k-means."""
        self._index = index
        self._parameters = search_parameters

    @property
    def nbytes(self) -> int:
        per_row = self._index.d * 4
        if self.kind == "fp16":
            per_row = self._index.d * 2
        elif self.kind == "ivf":
            per_row += 16
        elif self.kind == "hnsw":
            per_row += self._index.hnsw.nb_neighbors(0) * 4 + 12
        return int(self.n * per_row)

    def search(self, queries: FloatArray, k: int, mask: Mask | None = None) -> tuple[FloatArray, Indices]:
        selector = None if mask is None else selector_of(mask[: self.n])
        scores, rows = self._index.search(queries, k, params=self._parameters(selector))
        return scores, rows

    def grown(self, fresh: FloatArray) -> "IndexSearcher":
        """A searcher with ``fresh`` [m, d] behind the others; built aside, this one is left as it is."""
        start = time.perf_counter()
        index = faiss.clone_index(self._index)
        index.add(np.ascontiguousarray(fresh))
        grown = IndexSearcher(self.kind, index, self._parameters, self.recall, time.perf_counter() - start)
        grown.width, grown.fresh_width = self.width, self.fresh_width
        return grown

    def clusters(self, rows: Indices) -> Clusters | None:
        """Its clusters for another block of vectors, whose row i is this one's ``rows[i]`` (or -1); None if not ivf."""
        if self.kind != "ivf":
            return None
        lists = lists_of(self._index)
        kept = np.where(rows >= 0, lists[np.maximum(rows, 0)], -1)
        return Clusters(kept, int(self._index.nlist), self.fresh_width)

    def vectors(self, rows: Indices) -> FloatArray:
        """float32 [len(rows), d], as the index holds them."""
        found: FloatArray = self._index.reconstruct_batch(rows)
        return found


def build_searcher(
    vectors: FloatArray, settings: SearchSettings, clusters: Clusters | None = None
) -> "ExactSearcher | IndexSearcher":
    """A searcher over normalised ``vectors`` [n, d], of the kind that the settings give for n.

    ``clusters`` of an earlier searcher are kept while they serve: k-means runs again once they need twice the probes.
    """
    faiss.omp_set_num_threads(settings.threads)
    kind = settings.kind_for(len(vectors))
    if kind == "exact" or len(vectors) == 0:
        return ExactSearcher(vectors)
    start = time.perf_counter()
    if kind == "ivf" and clusters is not None and _lists_for(len(vectors)) <= 2 * clusters.count:
        kept = _tuned(kind, _with_map(index_of(vectors, clusters)), vectors, settings, start)
        if kept.recall >= settings.recall_target and kept.width <= 2 * clusters.width:
            kept.fresh_width = clusters.width
            return kept
    built = _tuned(kind, _new_index(kind, vectors), vectors, settings, start)
    built.fresh_width = built.width
    # Vectors without clusters need every list probed: then the exact search is faster, and right.
    return ExactSearcher(vectors) if settings.kind == "auto" and built.exhaustive else built


def _new_index(kind: str, vectors: FloatArray) -> Any:
    n, dim = vectors.shape
    if kind == "fp16":
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    elif kind == "hnsw":
        index = faiss.IndexHNSWFlat(dim, 24, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
    else:
        lists = _lists_for(n)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.spherical, index.cp.seed = 6, True, 1
        index.cp.max_points_per_centroid = 64
        use_best_path(dim)
        index.train(vectors[:: max(1, n // (64 * lists))])
    index.add(vectors)
    return _with_map(index) if kind == "ivf" else index


def _lists_for(n: int) -> int:
    return int(max(1, min(2 * n**0.5, n / 39)))


def _with_map(index: Any) -> Any:
    index.make_direct_map()  # without it no vector can be had back by its number
    return index


def _tuned(
    kind: str, index: Any, vectors: FloatArray, settings: SearchSettings, start: float
) -> IndexSearcher:
    """Search wider until the sample's recall reaches the target, or the width its end."""
    if kind == "fp16":
        return IndexSearcher(kind, index, _parameters(kind, 0), 1.0, time.perf_counter() - start)
    sample = _between(vectors)
    k = min(10, len(vectors))
    _, exact = inner_product(sample, vectors, k)
    widest = index.nlist if kind == "ivf" else 1024
    width, recall = min(8, widest), 0.0
    while True:
        _, found = index.search(sample, k, params=_parameters(kind, width)(None))
        recall = float(
            np.mean([len(set(a) & set(b)) / k for a, b in zip(exact.tolist(), found.tolist(), strict=True)])
        )
        if recall >= settings.recall_target or width >= widest:
            built = IndexSearcher(kind, index, _parameters(kind, width), recall, time.perf_counter() - start)
            built.exhaustive = kind == "ivf" and width > widest // 2
            built.width = width
            return built
        width = min(2 * width, widest)


def _between(vectors: FloatArray) -> FloatArray:
    """Queries like new images: near items, but not items, for an item is found more easily than what is near it."""
    near, off = np.random.default_rng(0).integers(len(vectors), size=(2, SAMPLE))
    sample: FloatArray = vectors[near] + np.float32(0.25) * vectors[off]
    normalise_rows(sample)
    return sample


def _parameters(kind: str, width: int) -> Any:
    if kind == "ivf":
        return lambda sel: faiss.SearchParametersIVF(nprobe=width, sel=sel)
    if kind == "hnsw":
        return lambda sel: faiss.SearchParametersHNSW(efSearch=width, sel=sel)
    return lambda sel: faiss.SearchParameters(sel=sel)


def _named(result: tuple[FloatArray, Indices], rows: Indices) -> tuple[FloatArray, Indices]:
    scores, found = result
    return scores, np.where(found < 0, -1, rows[np.maximum(found, 0)]) if len(rows) else found
