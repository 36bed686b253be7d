"""Retrieval metrics in blocks: memory stays bounded for galleries of a million vectors.

Ties count against the query: a negative as similar as the positive stands before it, so a collapsed
embedding scores
nothing and every figure is deterministic.
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
_GALLERY = 32768

Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Retrieval:
    """Queries against a gallery. Vectors need no normalisation. `self_index`: each query's own row in
    the gallery,
    or -1; None where no query is in the gallery."""

    queries: Floats
    query_labels: Labels
    gallery: Floats
    gallery_labels: Labels
    self_index: Labels | None = None

    @classmethod
    def leave_one_out(cls, vectors: Floats, labels: Labels) -> Retrieval:
        """Every vector against all the others."""
        return cls(vectors, labels, vectors, labels, np.arange(len(vectors)))

    def __post_init__(self) -> None:
        if len(self.queries) != len(self.query_labels) or len(self.gallery) != len(self.gallery_labels):
            raise ValueError("as many labels as vectors are expected, of queries and of the gallery")
        if self.queries.ndim != 2 or self.queries.shape[1:] != self.gallery.shape[1:]:
            raise ValueError(
                f"queries {self.queries.shape} against a gallery {self.gallery.shape}: not one space"
            )


def recall_at_k(retrieval: Retrieval, ks: Sequence[int] = KS) -> dict[int, float]:
    """Share of queries with an image of their class among the k nearest others, for each k.

    Queries whose class has no other image in the gallery are left out; ValueError when none remains.
    """
    depth = max(ks)
    found = dict.fromkeys(ks, 0)
    n = 0
    for hits, relevant in _rankings(retrieval, depth):
        hits = hits[relevant > 0]
        n += len(hits)
        for k in ks:
            found[k] += int(hits[:, :k].any(1).sum())
    return {k: found[k] / _some(n) for k in ks}


def nearest_is_relevant(retrieval: Retrieval) -> NDArray[np.float32]:
    """For each query [q] 1 if its nearest other is of its class, else 0; NaN where its class has no other image.

    Its mean over any set of queries, the NaN left out, is their `recall_at_k` with k = 1.
    """
    blocks = []
    for hits, relevant in _rankings(retrieval, 1):
        hit = hits[:, 0].float()
        blocks.append(torch.where(relevant > 0, hit, torch.full_like(hit, torch.nan)))
    return torch.cat(blocks).numpy() if blocks else np.empty(0, np.float32)


def map_at_r(retrieval: Retrieval) -> float:
    """mAP@R: mean over queries of 1/R sum_{i<=R} precision(i) relevant(i), R the other images of its class.

    Queries as in `recall_at_k` (Musgrave et al., A Metric Learning Reality Check, 2020).
    """
    _, sizes = np.unique(retrieval.gallery_labels, return_counts=True)
    total, n = 0.0, 0
    for hits, relevant in _rankings(retrieval, int(sizes.max(initial=1))):
        hits, r = hits[relevant > 0].double(), relevant[relevant > 0].double()
        ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
        hits = hits * (ranks <= r[:, None])
        total += float(((hits.cumsum(1) / ranks * hits).sum(1) / r).sum())
        n += len(hits)
    return total / _some(n)


def _rankings(retrieval: Retrieval, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(hits [q, D] boolean, best first, relevant others [q]) for one block of queries after another."""
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
    best = torch.full((len(queries), depth), -torch.inf)
    hits = torch.zeros(len(queries), depth, dtype=torch.bool)
    relevant = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(retrieval.gallery), _GALLERY):
        block = slice(start, start + _GALLERY)
        gallery = unit(torch.from_numpy(np.ascontiguousarray(retrieval.gallery[block], np.float32)))
        same = labels[:, None] == torch.from_numpy(
            np.ascontiguousarray(retrieval.gallery_labels[block], np.int64)
        )
        similar = queries @ gallery.T
        # The next smaller float puts a positive behind every negative that it ties with.
        similar = torch.where(same, torch.nextafter(similar, torch.tensor(-torch.inf)), similar)
        if own is not None:
            at = torch.nonzero((own >= start) & (own < start + len(gallery)))[:, 0]
            similar[at, own[at] - start] = -torch.inf
            same[at, own[at] - start] = False
        relevant += same.sum(1)
        candidates, order = torch.cat([best, similar], 1).topk(depth, dim=1)
        hits = torch.cat([hits, same], 1).gather(1, order)
        best = candidates
    return hits, relevant


def _some(n: int) -> int:
    if n == 0:
        raise ValueError(
            "no query has another image of its class in the gallery; there is nothing to measure"
        )
    return n


def average_incremental_recall(union_by_stage: Sequence[float]) -> float:
    """Mean over stages of the recall on all classes so far."""
    return float(np.mean(union_by_stage))


def forgetting(recall_TT: Floats) -> float:
    """Mean over earlier tasks of best so far minus now; recall_TT[t, k] after stage t on task k <= t.
    0 for one stage."""
    last = len(recall_TT) - 1
    return (
        float(np.mean([recall_TT[k:last, k].max() - recall_TT[last, k] for k in range(last)]))
        if last
        else 0.0
    )


def backward_transfer(recall_TT: Floats) -> float:
    """Mean over earlier tasks of now minus when it was learnt. 0 for one stage."""
    last = len(recall_TT) - 1
    return float(np.mean([recall_TT[last, k] - recall_TT[k, k] for k in range(last)])) if last else 0.0


def compatibility_matrix(
    queries: Mapping[str, Floats], galleries: Mapping[tuple[str, str], Floats], labels: Labels
) -> dict[tuple[str, str], float]:
    """Recall@1 of queries embedded by version t against the same images as galleries[(k, t)], leave-one-out.

    galleries[(k, t)] is what version k embedded, in the space of t as mapped (or not) by the caller.
    """
    own = np.arange(len(labels))
    return {
        (k, t): recall_at_k(Retrieval(queries[t], labels, gallery, labels, own), (1,))[1]
        for (k, t), gallery in galleries.items()
    }
