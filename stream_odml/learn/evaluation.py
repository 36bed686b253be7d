"""Retrieval metrics in blocks: memory stays bounded for galleries of a million vectors.

Ties count against the query: a negative as similar as the positive stands before it, so a collapsed embedding
scores nothing and every figure is deterministic.
"""

# q queries of a block   Q queries   G gallery   D depth of the ranking

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.geometry import unit
from stream_odml.learn.packing import Floats

KS = (1, 2, 4, 8, 16, 32)
_QUERIES = 512
_GALLERY = 8192
_LAST = torch.iinfo(torch.int64).min

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Retrieval:
    """Queries against a gallery. Vectors need no normalisation. `self_index`: each query's own row in the
    gallery, or -1; None where no query is in the gallery."""

    queries: Floats
    query_labels: Labels
    gallery: Floats
    gallery_labels: Labels
    self_index: Labels | None = None

    @classmethod
    def leave_one_out(cls, vectors: Floats, labels: Labels) -> Retrieval:
        """Return the retrieval of every vector against all others."""
        return cls(vectors, labels, vectors, labels, np.arange(len(vectors)))

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.query_labels) or len(self.gallery) != len(self.gallery_labels):
            raise ValueError("as many labels as vectors are expected, of queries and of the gallery")
        if self.queries.ndim != 2 or self.queries.shape[1:] != self.gallery.shape[1:]:
            raise ValueError(
                f"queries {self.queries.shape} against a gallery {self.gallery.shape}: not one space"
            )
        # A NaN would rank first, or make an image of its class of everything.
        for name, vectors in (("queries", self.queries), ("gallery", self.gallery)):
            if not np.isfinite(vectors.sum(dtype=np.float64)):
                raise ValueError(f"{name} with a value that is not finite")


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
        return {k: int(((first > 0) & (first <= k)).sum()) / _some(len(first)) for k in ks}

    def map_at_r(self) -> float:
        """Return mAP@R, the mean of AP@R over queries as in `recall_at_k` (Musgrave et al., A Metric Learning
        Reality Check, 2020)."""
        known = self.precision_Q[~np.isnan(self.precision_Q)]
        return float(known.sum()) / _some(len(known))


def score_queries(retrieval: Retrieval, depth: int = max(KS)) -> QueryScores:
    """Search once, as deep as `depth` and as the largest class of the gallery."""
    _, sizes = np.unique(retrieval.gallery_labels, return_counts=True)
    first, precision = [np.empty(0, np.int32)], [np.empty(0)]
    for hits, relevant in _rankings(retrieval, max(depth, int(sizes.max(initial=1)))):
        found = torch.where(hits.any(1), hits.int().argmax(1) + 1, 0)
        ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
        hits_d = hits.double() * (ranks <= relevant[:, None])
        first.append(found.to(torch.int32).numpy())
        precision.append(((hits_d.cumsum(1) / ranks * hits_d).sum(1) / relevant).numpy())
    return QueryScores(np.concatenate(first), np.concatenate(precision))


def recall_at_k(retrieval: Retrieval, ks: Sequence[int] = KS) -> dict[int, float]:
    """Return `QueryScores.recall_at_k` of all queries, searched no deeper than max(ks)."""
    found = dict.fromkeys(ks, 0)
    n = 0
    for hits, relevant in _rankings(retrieval, max(ks)):
        hits = hits[relevant > 0]
        n += len(hits)
        for k in ks:
            found[k] += int(hits[:, :k].any(1).sum())
    return {k: found[k] / _some(n) for k in ks}


def nearest_is_relevant(retrieval: Retrieval) -> NDArray[np.float32]:
    """Return for each query [q] 1 if its nearest other is of its class, else 0; NaN where its class has
    no other image.

    Its mean over any set of queries, the NaN left out, is their `recall_at_k` with k = 1.
    """
    blocks = []
    for hits, relevant in _rankings(retrieval, 1):
        hit = hits[:, 0].float()
        blocks.append(torch.where(relevant > 0, hit, torch.full_like(hit, torch.nan)))
    return torch.cat(blocks).numpy() if blocks else np.empty(0, np.float32)


def _rankings(retrieval: Retrieval, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (hits [q, D] boolean, best first, relevant others [q]) for one block of queries after another."""
    depth = min(depth, len(retrieval.gallery))
    for start in range(0, len(retrieval.queries), _QUERIES):
        rows = slice(start, start + _QUERIES)
        queries = unit(torch.from_numpy(np.ascontiguousarray(retrieval.queries[rows], np.float32)))
        labels = torch.from_numpy(np.ascontiguousarray(retrieval.query_labels[rows], np.int64))
        own = None if retrieval.self_index is None else torch.from_numpy(retrieval.self_index[rows])
        yield _rank_block(retrieval, queries, labels, own, depth)


def _rank_block(
    retrieval: Retrieval, queries: Tensor, labels: Tensor, own: Tensor | None, depth: int
) -> tuple[Tensor, Tensor]:
    best = torch.full((len(queries), depth), _LAST)
    hits = torch.zeros(len(queries), depth, dtype=torch.bool)
    relevant = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(retrieval.gallery), _GALLERY):
        block = slice(start, start + _GALLERY)
        gallery = unit(torch.from_numpy(np.ascontiguousarray(retrieval.gallery[block], np.float32)))
        same = labels[:, None] == torch.from_numpy(
            np.ascontiguousarray(retrieval.gallery_labels[block], np.int64)
        )
        similar = queries @ gallery.T
        key = _rank_keys(similar, same)
        if own is not None:
            at = torch.nonzero((own >= start) & (own < start + len(gallery)))[:, 0]
            key[at, own[at] - start] = _LAST
            same[at, own[at] - start] = False
        relevant += same.sum(1)
        candidates, order = torch.cat([best, key], 1).topk(depth, dim=1)
        hits = torch.cat([hits, same], 1).gather(1, order)
        best = candidates
    return hits, relevant


def _rank_keys(similar: Tensor, same: Tensor) -> Tensor:
    """Return integers int64 in the order of `similar` float32, a positive behind every negative that it ties with, and
    before one that is a last bit less similar: so that no answer depends on how deep the search was."""
    bits = (similar + 0.0).view(torch.int32)  # minus zero becomes zero
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64) * 2 + ~same


def _some(n: int) -> int:
    if n == 0:
        raise ValueError(
            "no query has another image of its class in the gallery; there is nothing to measure"
        )
    return n


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
