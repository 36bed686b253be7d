"""Recall after a stage: each split of the classes, each form of the gallery."""

# M measured images   d embedding

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from benchmarks.quality.data import Ints
from benchmarks.quality.state import Floats
from stream_odml.learn.drift import DriftMap, compose
from stream_odml.learn.evaluation import (
    Retrieval,
    compatibility_matrix,
    map_at_r,
    recall_at_k,
)

Measured = dict[str, Any]


def measure_stage(
    stage: int, labels_M: Ints, arrival_M: Ints, queries_Md: Floats, galleries: dict[str, Floats]
) -> Iterator[Measured]:
    """{split, gallery, metric, value} for the union of classes so far, the old, the new and each stage's.

    The gallery is the union's images of all of them, the query itself excluded. The split `base_alone` has a
    gallery of base classes only, which tells forgetting from the crowd of newcomers.
    """
    rows = np.flatnonzero(arrival_M <= stage)
    labels, arrival = labels_M[rows], arrival_M[rows]
    queries = queries_Md[rows]
    for form, vectors_Md in galleries.items():
        gallery = vectors_Md[rows]
        parts = [_recalls(queries, gallery, labels, np.flatnonzero(arrival == k)) for k in range(stage + 1)]
        groups = {"union": range(stage + 1), "old": range(stage), "new": range(stage, stage + 1)}
        for split, members in groups.items():
            yield from _pooled([parts[k] for k in members], split, form)
        for k in range(stage + 1):
            yield from _pooled([parts[k]], f"stage {k}", form)
        base = arrival == 0
        alone = _recalls(queries[base], gallery[base], labels[base], np.arange(int(base.sum())))
        yield from _pooled([alone], "base_alone", form)
        if form != "stale":
            own = np.arange(len(labels))
            value = map_at_r(Retrieval(queries, labels, gallery, labels, own))
            yield {"split": "union", "gallery": form, "metric": "map_at_r", "value": value}


def measure_compatibility(labels: Ints, views: list[Floats], forward: list[DriftMap]) -> Iterator[Measured]:
    """Recall@1 of the base classes, queries by version t against a gallery by version k, mapped and not."""
    versions = range(len(views))
    queries = {str(t): views[t] for t in versions}
    pairs = [(k, t) for t in versions for k in range(t + 1)]
    stale = {(str(k), str(t)): views[k] for k, t in pairs}
    mapped = {(str(k), str(t)): compose(forward[k:t]).apply(views[k]) for k, t in pairs}
    for form, galleries in (("mapped", mapped), ("stale", stale)):
        for (k, t), value in compatibility_matrix(queries, galleries, labels).items():
            yield {
                "split": f"compatibility {k} {t}",
                "gallery": form,
                "metric": "recall_at_1",
                "value": value,
            }


def _recalls(queries: Floats, gallery: Floats, labels: Ints, rows: Ints) -> tuple[int, dict[int, float]]:
    """Queries that have another image of their class, and their recalls."""
    counts = np.bincount(labels)
    able = rows[counts[labels[rows]] > 1]
    if len(able) == 0:
        return 0, {}
    query_labels = labels[able]
    return len(able), recall_at_k(Retrieval(queries[able], query_labels, gallery, labels, able))


def _pooled(parts: list[tuple[int, dict[int, float]]], split: str, form: str) -> Iterator[Measured]:
    total = sum(n for n, _ in parts)
    if total == 0:
        return
    for k in next(recalls for n, recalls in parts if n):
        value = sum(n * recalls[k] for n, recalls in parts if n) / total
        yield {"split": split, "gallery": form, "metric": f"recall_at_{k}", "value": value}
