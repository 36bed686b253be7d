"""From how many queries on FAISS's matrix-product path beats its scan: measured once a process and dimension.

Without this a batch of 32 takes several times as long: since spring 2026 FAISS scans until queries x d reaches 128,000.
"""

import time
from functools import cache

import faiss
import numpy as np

from stream_odml.gallery.tables import FloatArray

ROWS = 16384
BATCHES = (1, 2, 4, 8, 16, 32)
REPEATS = 3
ALWAYS_SCAN = 1 << 30


@cache
def matrix_path_from(dim: int) -> int:
    """The smallest batch for which the matrix product wins at dimension ``dim``, in about 0.1 s."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((ROWS, dim), dtype=np.float32)
    for batch in BATCHES:
        queries = rows[:batch].copy()
        if _seconds(queries, rows, 1) < _seconds(queries, rows, ALWAYS_SCAN):
            return batch
    return BATCHES[-1] * 2


def use_best_path(dim: int) -> None:
    """Set FAISS's process-wide switch for searches at dimension ``dim``."""
    faiss.cvar.distance_compute_blas_threshold = matrix_path_from(dim) * dim


def _seconds(queries: FloatArray, rows: FloatArray, threshold: int) -> float:
    before = faiss.cvar.distance_compute_blas_threshold
    faiss.cvar.distance_compute_blas_threshold = threshold
    best = float("inf")
    try:
        for _ in range(REPEATS):
            start = time.perf_counter()
            faiss.knn(queries, rows, 10, faiss.METRIC_INNER_PRODUCT)
            best = min(best, time.perf_counter() - start)
    finally:
        faiss.cvar.distance_compute_blas_threshold = before
    return best
