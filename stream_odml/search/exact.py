"""Exact nearest neighbours by inner product in an array, by whichever of FAISS's ways is fastest for so many queries.

One query scans the rows. A few scan them block by block, so that a block is fetched from memory once for all of them;
many are one matrix product (see calibration.py for where it begins to win).
"""

from typing import Any

import faiss as typed_faiss
import numpy as np
from numpy.typing import NDArray

from stream_odml.search.calibration import block_rows, matrix_path_from
from stream_odml.store.tables import FloatArray

faiss: Any = typed_faiss  # its stubs know no keyword arguments
Indices = NDArray[np.int64]
Mask = NDArray[np.bool_]


def inner_product(
    queries: FloatArray, rows: FloatArray, k: int, mask: Mask | None = None
) -> tuple[FloatArray, Indices]:
    """Return the `k` best of `rows` [n, d], perhaps only where `mask` [n] is set, for `queries` [nq, d]. Scores
    [nq, k] descending and row numbers [nq, k]; -inf and -1 where there are fewer than k."""
    queries = np.ascontiguousarray(queries)
    nq, (n, dim) = len(queries), rows.shape
    block = block_rows(dim)
    if mask is None and nq >= 2 and n >= 2 * block and nq < matrix_path_from(dim):
        starts = range(0, n, block)
        parts = [inner_product(queries, rows[start : start + block], k) for start in starts]
        for start, (_, found) in zip(starts, parts, strict=True):
            found[found >= 0] += start
        return merge_top(parts, k)
    scores = np.full((nq, k), -np.inf, dtype=np.float32)
    found = np.full((nq, k), -1, dtype=np.int64)
    if n == 0 or nq == 0:
        return scores, found
    arrays = (faiss.swig_ptr(queries), faiss.swig_ptr(rows))
    results = (faiss.swig_ptr(scores), faiss.swig_ptr(found))
    selector = () if mask is None else (selector_of(mask),)
    faiss.knn_inner_product(*arrays, dim, nq, n, k, *results, *selector)
    scores[found < 0] = -np.inf  # from k = 100 on FAISS fills with its lowest number
    return scores, found


def merge_top(parts: list[tuple[FloatArray, Indices]], k: int) -> tuple[FloatArray, Indices]:
    """Return the best `k` of several results for the same queries."""
    if len(parts) == 1:
        return parts[0]
    scores = np.concatenate([part[0] for part in parts], axis=1)
    rows = np.concatenate([part[1] for part in parts], axis=1)
    order = np.argsort(-np.where(rows < 0, -np.inf, scores), axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


def renumbered(found: Indices, numbers: Indices) -> Indices:
    """Return the `numbers` of rows `found`, of any shape; -1 where nothing was found."""
    return np.where(found < 0, -1, numbers[np.maximum(found, 0)]) if len(numbers) else found


def selector_of(mask: Mask) -> Any:
    """Return FAISS's form of `mask`."""
    bits = np.packbits(mask, bitorder="little")
    selector = faiss.IDSelectorBitmap(bits)
    selector.keeps_alive = bits
    return selector
