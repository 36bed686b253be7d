"""Figures of a study, of one search of many queries or of a whole stream."""

# q queries of a block   Q queries   T stages

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from stream_odml.learn.evaluation import KS, Labels, Retrieval, rankings, recall_at_k, some
from stream_odml.learn.packing import Floats


@dataclass(frozen=True)
class QueryScores:
    """What each query found, so that any subset of queries is scored without a second search."""

    first_Q: NDArray[np.int32]
    """Rank, from 1, of the nearest other image of its class; 0 where none is as near as the search was deep."""
    precision_Q: NDArray[np.float64]
    """AP@R: 1/R sum_{i<=R} precision(i) relevant(i), R the other images of its class; NaN where there is none."""

    def recall_at_k(self, ks: Sequence[int] = KS, rows: Labels | slice = slice(None)) -> dict[int, float]:
        """Return the share of queries (of `rows`) with an image of their class among the k nearest others,
        for each k.

        Queries whose class has no other image are left out; ValueError when none remains.
        """
        first = self.first_Q[rows][~np.isnan(self.precision_Q[rows])]
        return {k: int(((first > 0) & (first <= k)).sum()) / some(len(first)) for k in ks}

    def map_at_r(self) -> float:
        """Return mAP@R, the mean of AP@R over queries as in `recall_at_k` (Musgrave et al., A Metric Learning
        Reality Check, 2020)."""
        known = self.precision_Q[~np.isnan(self.precision_Q)]
        return float(known.sum()) / some(len(known))


def score_queries(retrieval: Retrieval, depth: int = max(KS)) -> QueryScores:
    """Search once, as deep as `depth` and as the largest class of the gallery."""
    _, sizes = np.unique(retrieval.gallery_labels, return_counts=True)
    first, precision = [np.empty(0, np.int32)], [np.empty(0)]
    for hits, relevant in rankings(retrieval, max(depth, int(sizes.max(initial=1)))):
        found = torch.where(hits.any(1), hits.int().argmax(1) + 1, 0)
        ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
        hits_d = hits.double() * (ranks <= relevant[:, None])
        first.append(found.to(torch.int32).numpy())
        precision.append(((hits_d.cumsum(1) / ranks * hits_d).sum(1) / relevant).numpy())
    return QueryScores(np.concatenate(first), np.concatenate(precision))


def average_incremental_recall(union_by_stage: Sequence[float]) -> float:
    """Return the mean over stages of the recall on all classes so far."""
    return float(np.mean(union_by_stage))


def forgetting(recall_TT: Floats) -> float:
    """Return the mean over earlier tasks of best so far minus now; recall_TT[t, k] after stage t on task
    k <= t; 0 for one stage."""
    last = len(recall_TT) - 1
    return (
        float(np.mean([recall_TT[k:last, k].max() - recall_TT[last, k] for k in range(last)]))
        if last
        else 0.0
    )


def backward_transfer(recall_TT: Floats) -> float:
    """Return the mean over earlier tasks of now minus when it was learnt. 0 for one stage."""
    last = len(recall_TT) - 1
    return float(np.mean([recall_TT[last, k] - recall_TT[k, k] for k in range(last)])) if last else 0.0


def compatibility_matrix(
    queries: Mapping[str, Floats],
    galleries: Mapping[tuple[str, str], Floats],
    labels: Labels,
    rows: Labels | None = None,
) -> dict[tuple[str, str], float]:
    """Return Recall@1 of queries embedded by version t against the same images as galleries[(k, t)], leave-one-out.

    galleries[(k, t)] is what version k embedded, in the space of t as mapped (or not) by the caller. `rows`: the
    images that query, if not all.
    """
    own = np.arange(len(labels)) if rows is None else rows
    return {
        (k, t): recall_at_k(Retrieval(queries[t][own], labels[own], gallery, labels, own), (1,))[1]
        for (k, t), gallery in galleries.items()
    }
