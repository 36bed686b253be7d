"""An inverted file over clusters that an earlier one found: when the space moves, its clusters move with it.

Without this every new model version costs a k-means over the gallery, which is most of the time of a swap.
"""

from dataclasses import dataclass
from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from stream_odml.search.calibration import use_best_path
from stream_odml.search.vectors import normalise_rows
from stream_odml.store.tables import FloatArray

faiss: Any = typed_faiss  # its stubs know no keyword arguments
PER_LIST = 64
"""Vectors of a cluster, about, that its new centre is the mean of; as many as k-means itself looks at."""


@dataclass(frozen=True, eq=False)
class Clusters:
    """``lists`` [n]: the cluster of each row, -1 where it has none yet; ``count`` clusters; ``width``: how many of
    them were probed when they were fresh from k-means."""

    lists: NDArray[np.int64]
    count: int
    width: int


def index_of(vectors: FloatArray, clusters: Clusters) -> Any:
    """Return an inverted file over normalised ``vectors`` [n, d] whose centres are the means of ``clusters`` here."""
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
