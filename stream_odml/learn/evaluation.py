"""Retrieval metrics in blocks: memory stays bounded for galleries of a million vectors; and what a stage would cost the
classes whose images are gone, estimated from their stored vectors and the drift map.

Ties count against the query: a negative as similar as the positive stands before it, so a collapsed embedding
scores nothing and every figure is deterministic.
"""

# q queries of a block   Q queries   G gallery   D depth of the ranking   n stored vectors of old classes   d embedding

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stream_odml.learn.drift import DriftMap
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
        for name, labels in (("queries", self.query_labels), ("gallery", self.gallery_labels)):
            if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu":
                kind = getattr(labels, "dtype", type(labels).__name__)
                raise ValueError(
                    f"labels of the {name} of type {kind}; expected a NumPy array of whole numbers: "
                    "np.unique(names, return_inverse=True)[1] makes one"
                )
        for name, vectors in (("queries", self.queries), ("gallery", self.gallery)):
            if not isinstance(vectors, np.ndarray):
                raise ValueError(
                    f"{name} of type {type(vectors).__name__}; expected a NumPy array: np.asarray of a list, "
                    "tensor.detach().cpu().numpy() of a tensor"
                )
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
        own = self.self_index
        if own is not None and (
            own.shape != self.query_labels.shape
            or (len(own) and not -1 <= own.min() <= own.max() < len(self.gallery))
        ):
            raise ValueError(
                f"self_index of shape {own.shape} for {len(self.queries)} queries of a gallery of {len(self.gallery)}; "
                "expected each query's own row, or -1"
            )


def recall_at_k(retrieval: Retrieval, ks: Sequence[int] = KS) -> dict[int, float]:
    """Return the share of queries with an image of their class among the k nearest others, for each k. Queries whose
    class has no other image are left out; ValueError when none remains, and for a k under 1."""
    if min(ks, default=0) < 1:
        raise ValueError(f"ks {tuple(ks)}; expected one depth of at least 1, or more of them")
    found = dict.fromkeys(ks, 0)
    n = 0
    for hits, relevant in rankings(retrieval, max(ks)):
        hits = hits[relevant > 0]
        n += len(hits)
        for k in ks:
            found[k] += int(hits[:, :k].any(1).sum())
    return {k: found[k] / some(n) for k in ks}


def nearest_is_relevant(retrieval: Retrieval) -> NDArray[np.float32]:
    """Return for each query [q] 1 if its nearest other is of its class, else 0; NaN where its class has no other image.
    Its mean over any set of queries, the NaN left out, is their `recall_at_k` with k = 1."""
    blocks = []
    for hits, relevant in rankings(retrieval, 1):
        hit = hits[:, 0].float()
        blocks.append(torch.where(relevant > 0, hit, torch.full_like(hit, torch.nan)))
    return torch.cat(blocks).numpy() if blocks else np.empty(0, np.float32)


def rankings(retrieval: Retrieval, depth: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield (hits [q, D] boolean, best first, relevant others [q]) for one block of queries after another."""
    depth = min(depth, len(retrieval.gallery))
    for start in range(0, len(retrieval.queries), _QUERIES):
        yield _rank_block(retrieval, slice(start, start + _QUERIES), depth)


def _rank_block(retrieval: Retrieval, rows: slice, depth: int) -> tuple[Tensor, Tensor]:
    queries, labels = _units(retrieval.queries[rows]), torch.from_numpy(retrieval.query_labels[rows])
    own = None if retrieval.self_index is None else torch.from_numpy(retrieval.self_index[rows])
    best = torch.full((len(queries), depth), _LAST)
    hits = torch.zeros(len(queries), depth, dtype=torch.bool)
    relevant = torch.zeros(len(queries), dtype=torch.int64)
    for start in range(0, len(retrieval.gallery), _GALLERY):
        block = slice(start, start + _GALLERY)
        gallery = _units(retrieval.gallery[block])
        same = labels[:, None] == torch.from_numpy(retrieval.gallery_labels[block])
        similar = queries @ gallery.T
        key = _rank_keys(similar, same)
        if own is not None:
            at = torch.nonzero((own >= start) & (own < start + len(gallery)))[:, 0]
            key[at, own[at] - start] = _LAST
            same[at, own[at] - start] = False
        relevant += same.sum(1)
        best, order = torch.cat([best, key], 1).topk(depth, dim=1)
        hits = torch.cat([hits, same], 1).gather(1, order)
    return hits, relevant


def _units(vectors: Floats) -> Tensor:
    return unit(torch.from_numpy(np.ascontiguousarray(vectors, np.float32)))


def _rank_keys(similar: Tensor, same: Tensor) -> Tensor:
    """Return integers int64 in the order of `similar` float32, a positive behind every negative that it ties with, and
    before one that is a last bit less similar: so that no answer depends on how deep the search was."""
    bits = (similar + 0.0).view(torch.int32)  # minus zero becomes zero
    return torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).to(torch.int64) * 2 + ~same


def some(n: int) -> int:
    """Return how many queries there are to measure. Raises ValueError for none."""
    if n == 0:
        raise ValueError(
            "no query has another image of its class in the gallery; there is nothing to measure"
        )
    return n


def estimated_recall(
    stored_nd: Floats, labels_n: Labels, forward: DriftMap, error: float, seed: int
) -> tuple[float, float] | None:
    """Return (before, after): served Recall@1 of old classes under the parent and under the child; None if no
    class has two.

    Before: each stored vector, in the parent's space, against the others. After: the gallery is mapped; a query, which
    the child would embed itself, is taken for its mapped vector plus noise of mean square `error`, by which the map
    missed the classes that it was not fitted to. The noise is isotropic: an estimate, not a bound.
    """
    before = nearest_is_relevant(Retrieval.leave_one_out(stored_nd, labels_n))
    if np.isnan(before).all():
        return None
    mapped_nd = forward.apply(np.ascontiguousarray(stored_nd, np.float32))
    noise_nd = np.random.default_rng(seed).normal(size=mapped_nd.shape) * (error / mapped_nd.shape[1]) ** 0.5
    queries_nd = (mapped_nd + noise_nd).astype(np.float32)
    own_n = np.arange(len(labels_n))
    after = nearest_is_relevant(Retrieval(queries_nd, labels_n, mapped_nd, labels_n, own_n))
    return float(np.nanmean(before)), float(np.nanmean(after))
