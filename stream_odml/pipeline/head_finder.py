"""Which held-out images find their class under a discriminant head: both parts in one gallery, as search compares them.

Protects: no torch is loaded, and beside the embeddings memory is bounded by a block of queries.
"""

from __future__ import annotations

import numpy as np

from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.pipeline.evaluating import Finder
from stream_odml.pipeline.held_out_rows import Floats, HeldOut

BLOCK = 512
"""Queries compared at a time."""


def by_head(head: DiscriminantHead) -> Finder:
    """Return how features [n, D] of the head's trunk are compared: items of classes that it knows by the known part,
    others by the new part, scaled, plus `new_bonus`. Ties count against the query."""

    def find(held: HeldOut, queries: Floats, gallery: Floats) -> Floats:
        known_n = np.array([head.knows(name) for name in held.names], bool)[held.labels]
        z_n = head.embed(queries)
        query = head.split(z_n)
        item = query if np.array_equal(gallery, queries) else head.split(head.embed(gallery))
        known_gd, new_gD = item[0][known_n].T, item[1][~known_n].T
        others_n = np.bincount(held.labels)[held.labels] - 1
        found_n = np.full(len(queries), np.nan, np.float32)
        for at in range(0, len(queries), BLOCK):
            rows = np.arange(at, min(at + BLOCK, len(queries)))
            score_qg = np.empty((len(rows), len(queries)), np.float32)
            score_qg[:, known_n] = query[0][rows] @ known_gd
            score_qg[:, ~known_n] = np.float32(head.new_scale) * (query[1][rows] @ new_gD) + np.float32(
                head.new_bonus
            )
            same_qg = held.labels[rows][:, None] == held.labels[None]
            score_qg[np.arange(len(rows)), rows] = -np.inf
            best_q1 = score_qg.max(axis=1, keepdims=True)
            found_n[rows] = ~((score_qg == best_q1) & ~same_qg).any(axis=1)
        found_n[others_n == 0] = np.nan
        return found_n

    return find
