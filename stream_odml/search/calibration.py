"""From how many queries on FAISS's matrix-product path beats its scan: measured once a process and dimension.

Without this a batch of 32 takes several times as long: since spring 2026 FAISS scans until queries x d reaches 128,000.
"""

import timeit
from collections.abc import Callable
from functools import cache, partial

import faiss
import numpy as np

from stream_odml.store.tables import FloatArray

ROWS = 16384
BATCHES = (1, 2, 4, 8, 16, 32)
REPEATS = 3
ALWAYS_SCAN = 1 << 30
PRODUCT_ROWS = 4096
"""Rows of one matrix product; FAISS's own 1024 costs a batch of 16 a quarter more."""
BLOCK_BYTES = 1 << 20
"""Rows scanned at a time by several queries: half of the cache that a core of its own has today."""
SMALLEST_BLOCK = 1024
"""Rows, under which a block costs more in calls than its reading saves."""


@cache
def matrix_path_from(dim: int) -> int:
    """Return the smallest batch for which the matrix product wins at dimension `dim`, in about 0.1 s."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, dim), dtype=np.float32)
    faiss.cvar.distance_compute_blas_database_bs = PRODUCT_ROWS
    for batch in BATCHES:
        queries = rows[:batch].copy()
        if _seconds(partial(_search, queries, rows), 1) < _seconds(
            partial(_scan, queries, rows), ALWAYS_SCAN
        ):
            return batch
    return BATCHES[-1] * 2


def use_best_path(dim: int) -> None:
    """Set FAISS's process-wide switch for searches at dimension `dim`."""
    faiss.cvar.distance_compute_blas_threshold = matrix_path_from(dim) * dim


def block_rows(dim: int) -> int:
    """Return rows that several queries scan together before they go on to the next."""
    return max(SMALLEST_BLOCK, BLOCK_BYTES // (4 * dim))


def _scan(queries: FloatArray, rows: FloatArray) -> None:
    step = block_rows(rows.shape[1]) if len(queries) > 1 else len(rows)
    for start in range(0, len(rows), step):
        _search(queries, rows[start : start + step])


def _search(queries: FloatArray, rows: FloatArray) -> None:
    faiss.knn(queries, rows, 10, faiss.METRIC_INNER_PRODUCT)


def _seconds(work: Callable[[], object], threshold: int) -> float:
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = threshold
    try:
        return best_seconds(work)
    finally:
        faiss.cvar.distance_compute_blas_threshold = before


def best_seconds(work: Callable[[], object]) -> float:
    """Return the shortest time of a few runs."""
    return min(timeit.repeat(work, number=1, repeat=REPEATS))
