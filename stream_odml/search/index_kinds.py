"""Kinds of FAISS indexes, one class each: how it is built, how wide it searches, what it weighs.

To add a kind: a class here, its entry in KINDS, and its name among the choices of `service.search`. Growing and masks
are the same for every kind, see `IndexSearcher`.
"""

from __future__ import annotations

from typing import Any, Protocol

import faiss as typed_faiss

from stream_odml.search.calibration import use_best_path
from stream_odml.store.tables import FloatArray

# Its stubs do not know keyword arguments.
faiss: Any = typed_faiss


class IndexKind(Protocol):
    """One kind of index over normalised vectors, compared by inner product."""

    def build(self, vectors: FloatArray) -> Any:
        """Return a FAISS index of vectors [n, d]; n is above 0."""
        ...

    def parameters(self, width: int, selector: Any) -> Any:
        """Return FAISS search parameters; `selector` leaves out rows, None for none."""
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

    def parameters(self, width: int, selector: Any) -> Any:
        return faiss.SearchParameters(sel=selector)

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

    def parameters(self, width: int, selector: Any) -> Any:
        return faiss.SearchParametersIVF(nprobe=width, sel=selector)

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

    def parameters(self, width: int, selector: Any) -> Any:
        return faiss.SearchParametersHNSW(efSearch=width, sel=selector)

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


def with_direct_map(index: Any) -> Any:
    """Let vectors be read back from inverted lists by their row number."""
    index.make_direct_map()
    return index
