"""Recall after a stage: each split of the classes, each form of the gallery."""

# M measured images   d embedding

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.quality.data import Ints
from benchmarks.quality.scores import QueryScores, compatibility_matrix, score_queries
from benchmarks.quality.state import Floats
from stream_odml.learn.drift import DriftMap, compose
from stream_odml.learn.evaluation import Retrieval, nearest_is_relevant

Measured = dict[str, Any]
Bools = NDArray[np.bool_]
KS = (1, 2, 4, 8, 10, 16, 32)
MAX_QUERIES = 500
"""Of one cell of the compatibility matrix."""


def measure_stage(
    stage: int, labels_M: Ints, arrival_M: Ints, queries_Md: Floats, galleries: dict[str, Floats]
) -> Iterator[Measured]:
    """{split, gallery, metric, value} for the union of classes so far, the old, the new and each stage's.

    The gallery is the union's images of all of them, the query itself excluded. The split `base_alone` has a
    gallery of base classes only, which tells forgetting from the crowd of newcomers.
    """
    rows = np.flatnonzero(arrival_M <= stage)
    labels, arrival = labels_M[rows], arrival_M[rows]
    groups = {"union": arrival <= stage, "old": arrival < stage, "new": arrival == stage}
    groups |= {f"stage {k}": arrival == k for k in range(stage + 1)}
    base = arrival == 0
    for form, vectors_Md in galleries.items():
        scores = _scores(queries_Md[rows], vectors_Md[rows], labels)
        for split, members in groups.items():
            yield from _recalls(scores, np.flatnonzero(members), split, form)
        alone = _scores(queries_Md[rows][base], vectors_Md[rows][base], labels[base])
        yield from _recalls(alone, np.arange(int(base.sum())), "base_alone", form)
        yield {"split": "union", "gallery": form, "metric": "map_at_r", "value": scores.map_at_r()}


def measure_unseen(
    known_M: Bools, coming_M: Bools, find: Callable[[Ints], Floats], form: str
) -> Iterator[Measured]:
    """Recall@1 before the task that brings them is learnt: of its classes in the gallery of all (`unseen`), of the
    classes learnt so far beside them (`seen`), and of its classes among themselves (`unseen_alone`).

    `find(rows)`: which of these images have one of their class as the nearest other, NaN where there is none.
    """
    both, coming = np.flatnonzero(known_M | coming_M), np.flatnonzero(coming_M)
    if not len(coming):
        return
    hits, alone = find(both), find(coming)
    parts = {"unseen": hits[coming_M[both]], "seen": hits[known_M[both]], "unseen_alone": alone}
    for split, found in parts.items():
        if not np.isnan(found).all():
            yield {
                "split": split,
                "gallery": form,
                "metric": "recall_at_1",
                "value": float(np.nanmean(found)),
            }


def nearest_by_cosine(queries_Md: Floats, gallery_Md: Floats, labels_M: Ints) -> Callable[[Ints], Floats]:
    """Return the `find` of `measure_unseen` for embeddings that are compared by cosine."""

    def find(rows: Ints) -> Floats:
        labels = labels_M[rows]
        return nearest_is_relevant(
            Retrieval(queries_Md[rows], labels, gallery_Md[rows], labels, np.arange(len(rows)))
        )

    return find


def measure_compatibility(labels: Ints, views: list[Floats], forward: list[DriftMap]) -> Iterator[Measured]:
    """Recall@1 of the base classes, queries by version t against a gallery by version k, mapped and not. There are
    as many pairs as versions squared: some images query, all are the gallery."""
    rows = _some_queries(labels)
    versions = range(len(views))
    queries = {str(t): views[t] for t in versions}
    pairs = [(k, t) for t in versions for k in range(t + 1)]
    stale = {(str(k), str(t)): views[k] for k, t in pairs}
    mapped = {(str(k), str(t)): compose(forward[k:t]).apply(views[k]) for k, t in pairs}
    for form, galleries in (("mapped", mapped), ("stale", stale)):
        yield from _cells(compatibility_matrix(queries, galleries, labels, rows), form)


def measure_versions(labels: Ints, queries_nd: Floats, galleries: list[Floats]) -> Iterator[Measured]:
    """The last column of that matrix, mapped: queries of the newest version against what each version so far has
    stored, as it is compared now."""
    t = str(len(galleries) - 1)
    stored = {(str(k), t): gallery for k, gallery in enumerate(galleries)}
    yield from _cells(compatibility_matrix({t: queries_nd}, stored, labels, _some_queries(labels)), "mapped")


def _some_queries(labels: Ints) -> Ints:
    some: Ints = np.unique(np.linspace(0, len(labels) - 1, MAX_QUERIES).astype(np.int64))
    return some


def _cells(matrix: Mapping[tuple[str, str], float], form: str) -> Iterator[Measured]:
    for (k, t), value in matrix.items():
        yield {"split": f"compatibility {k} {t}", "gallery": form, "metric": "recall_at_1", "value": value}


def _scores(queries: Floats, gallery: Floats, labels: Ints) -> QueryScores:
    return score_queries(Retrieval(queries, labels, gallery, labels, np.arange(len(labels))))


def _recalls(scores: QueryScores, rows: Ints, split: str, form: str) -> Iterator[Measured]:
    """Nothing where no query has another image of its class."""
    if np.isnan(scores.precision_Q[rows]).all():
        return
    for k, value in scores.recall_at_k(KS, rows).items():
        yield {"split": split, "gallery": form, "metric": f"recall_at_{k}", "value": value}
