"""Kinds of FAISS indexes, one class each: how it is built, how wide it searches, what it weighs.

To add a kind: a class here, its entry in KINDS, and its name among the choices of `service.search`. Growing and masks
are the same for every kind, see `IndexSearcher`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from stream_odml.search.calibration import use_best_path
from stream_odml.search.exact import Indices, Mask, selector_of
from stream_odml.search.vectors import normalise_rows
from stream_odml.store.tables import FloatArray

# Its stubs do not know keyword arguments.
faiss: Any = typed_faiss
LIST_BITS = 32
"""FAISS's direct map holds list << 32 | place in the list."""
WIDER_UNDER_MASK = 4
"""How many times as many rows are compared under a mask: the width was measured on queries that lie near rows, and
those that pass may be far. Of clustered vectors a recall of 0.84 to 0.95 becomes one of 0.99."""
PER_LIST = 64
"""Vectors of a cluster, about, that its new centre is the mean of; as many as k-means itself looks at."""
Found = tuple[FloatArray, Indices]


class IndexKind(Protocol):
    """One kind of index over normalised vectors, compared by inner product."""

    def build(self, vectors: FloatArray) -> Any:
        """Return a FAISS index of vectors [n, d]; n is above 0."""
        ...

    def search(self, index: Any, queries: FloatArray, k: int, width: int, mask: Mask | None) -> Found:
        """Return scores and row numbers [nq, k] of the nearest rows where `mask` [n] is set; -1 where no more are
        found. However few rows a mask leaves, and wherever they lie, they must be found as all are without one."""
        ...

    def max_width(self, index: Any) -> int:
        """Return the largest width to search for the recall target; 0 where the index is exact enough as it is."""
        ...

    def bytes_per_row(self, index: Any) -> int:
        """Return the memory of one vector."""
        ...


class HalfPrecision:
    """All vectors in half precision: half the memory, no measurable loss."""

    def build(self, vectors: FloatArray) -> Any:
        index = faiss.IndexScalarQuantizer(
            vectors.shape[1], faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT
        )
        index.add(vectors)
        return index

    def search(self, index: Any, queries: FloatArray, k: int, width: int, mask: Mask | None) -> Found:
        return scan(index, queries, k, mask)

    def max_width(self, index: Any) -> int:
        return 0

    def bytes_per_row(self, index: Any) -> int:
        return int(index.d) * 2


class InvertedLists:
    """Vectors in lists around k-means centres; a search probes the nearest lists."""

    def build(self, vectors: FloatArray) -> Any:
        n, dim = vectors.shape
        lists = lists_for(n)
        index = faiss.IndexIVFFlat(faiss.IndexFlatIP(dim), dim, lists, faiss.METRIC_INNER_PRODUCT)
        index.cp.niter, index.cp.spherical, index.cp.seed = 6, True, 1
        index.cp.max_points_per_centroid = 64
        use_best_path(dim)
        index.train(vectors[:: max(1, n // (64 * lists))])
        index.add(vectors)
        return with_direct_map(index)

    def search(self, index: Any, queries: FloatArray, k: int, width: int, mask: Mask | None) -> Found:
        if mask is None:
            return _searched(index, queries, k, faiss.SearchParametersIVF(nprobe=width))
        # Probed are the nearest of the lists that hold a row that passes, and the more of them the fewer those rows
        # are in a list: the nearest lists of all may hold none.
        passing = np.bincount(list_numbers(index)[np.flatnonzero(mask)], minlength=index.nlist)
        lists = np.flatnonzero(passing)
        rows = sum(index.invlists.list_size(int(one)) for one in lists)
        wide = WIDER_UNDER_MASK * width * max(rows, 1) / max(int(passing.sum()), 1)
        parameters = faiss.SearchParametersIVF(
            nprobe=max(1, int(min(len(lists), np.ceil(wide)))),
            sel=selector_of(mask),
            quantizer_params=faiss.SearchParameters(sel=selector_of(passing > 0)),
        )
        return _searched(index, queries, k, parameters)

    def max_width(self, index: Any) -> int:
        return int(index.nlist)

    def bytes_per_row(self, index: Any) -> int:
        return int(index.d) * 4 + 16


class NeighbourGraph:
    """A hierarchical graph of neighbours (HNSW); a search follows its edges."""

    def build(self, vectors: FloatArray) -> Any:
        index = faiss.IndexHNSWFlat(vectors.shape[1], 24, faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.add(vectors)
        return index

    def search(self, index: Any, queries: FloatArray, k: int, width: int, mask: Mask | None) -> Found:
        # Edges lead past what a mask leaves out, and end before they reach what is far.
        if mask is not None or k > self.max_width(index):
            return scan(faiss.downcast_index(index.storage), queries, k, mask)
        return _searched(index, queries, k, faiss.SearchParametersHNSW(efSearch=width))

    def max_width(self, index: Any) -> int:
        return 1024

    def bytes_per_row(self, index: Any) -> int:
        return int(index.d) * 4 + int(index.hnsw.nb_neighbors(0)) * 4 + 12


IVF = "ivf"
KINDS: dict[str, IndexKind] = {
    "fp16": HalfPrecision(),
    IVF: InvertedLists(),
    "hnsw": NeighbourGraph(),
}
"""By the names that `service.search` takes, beside `auto` and `exact`."""


def lists_for(n: int) -> int:
    """Return the number of inverted lists for n vectors."""
    return int(max(1, min(2 * n**0.5, n / 39)))


def scan(index: Any, queries: FloatArray, k: int, mask: Mask | None) -> Found:
    """Search an index that compares every row, perhaps only where `mask` is set."""
    selector = None if mask is None else selector_of(mask)
    return _searched(index, queries, k, faiss.SearchParameters(sel=selector))


def _searched(index: Any, queries: FloatArray, k: int, parameters: Any) -> Found:
    found: Found = index.search(queries, k, params=parameters)
    return found


def list_numbers(index: Any) -> Indices:
    """Return the list of each row [n] of an inverted file with a direct map."""
    numbers: Indices = faiss.rev_swig_ptr(index.direct_map.array.data(), int(index.ntotal)) >> LIST_BITS
    return numbers


def with_direct_map(index: Any) -> Any:
    """Let vectors be read back from inverted lists by their row number."""
    index.make_direct_map()
    return index


@dataclass(frozen=True, eq=False)
class Clusters:
    """What an earlier inverted file found. When the space moves, its clusters move along: a k-means over the gallery
    would be most of the time of a swap. `lists` [n]: the cluster of each row, -1 where it has none yet; `count`
    clusters; `width`: how many of them were probed when they were fresh from k-means."""

    lists: NDArray[np.int64]
    count: int
    width: int


def index_of(vectors: FloatArray, clusters: Clusters) -> Any:
    """Return an inverted file over normalised `vectors` [n, d] whose centres are the means of `clusters` here."""
    dim = vectors.shape[1]
    use_best_path(dim)
    quantizer = faiss.IndexFlatIP(dim)
    quantizer.add(_centres(vectors, clusters))
    index = faiss.IndexIVFFlat(quantizer, dim, clusters.count, faiss.METRIC_INNER_PRODUCT)
    index.is_trained = True
    lists = clusters.lists.astype(np.int64)
    late = np.flatnonzero(lists < 0)
    if len(late):
        lists[late] = quantizer.search(np.ascontiguousarray(vectors[late]), 1)[1][:, 0]
    index.add_core(len(vectors), faiss.swig_ptr(vectors), None, faiss.swig_ptr(lists))
    return index


def _centres(vectors: FloatArray, clusters: Clusters) -> FloatArray:
    step = max(1, len(vectors) // (PER_LIST * clusters.count))
    rows = np.flatnonzero(clusters.lists >= 0)[::step]
    rows = rows[np.argsort(clusters.lists[rows], kind="stable")]
    present, starts = np.unique(clusters.lists[rows], return_index=True)
    # A cluster that lost all its rows is never needed; the first centre in its place costs nothing.
    centres = np.repeat(vectors[:1], clusters.count, axis=0)
    centres[present] = np.add.reduceat(vectors[rows], starts, axis=0)
    normalise_rows(centres)
    return centres
