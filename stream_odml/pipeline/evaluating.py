"""Recall of a stage on held-out images before it is published: as served, as re-extracted, and without drift maps.

Protects: nothing here changes the model. The gallery is the union of the held-out images that were drawn; a query is
one of them, and never finds itself.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.learn.drift import DriftMap
from stream_odml.pipeline.held_out_rows import Floats, HeldOut
from stream_odml.store.store import Store
from stream_odml.store.version_metrics import VersionMetrics, key

BLOCK = 512
"""Queries that are compared by a head at a time, so that memory is bounded."""
Finder = Callable[[Sequence[str], Floats, Floats], Floats]
"""(classes [n], queries [n, d], gallery [n, d]) -> [n]: 1 where the nearest other is of the query's class, else 0; NaN
where its class has no other."""


def by_cosine(classes: Sequence[str], queries: Floats, gallery: Floats) -> Floats:
    """Compare embeddings as they are."""
    # Here: a stage under a discriminant head needs no torch.
    from stream_odml.learn.evaluation import Retrieval, nearest_is_relevant

    labels = np.unique(np.array(classes, np.str_), return_inverse=True)[1]
    return nearest_is_relevant(Retrieval(queries, labels, gallery, labels, np.arange(len(queries))))


def by_head(head: DiscriminantHead) -> Finder:
    """Return how features [n, D] of the head's trunk are compared: items of classes that it knows by the known part,
    others by `slice_of_new`, scaled, plus `new_bonus`. Ties count against the query."""

    def find(classes: Sequence[str], queries: Floats, gallery: Floats) -> Floats:
        names, labels = np.unique(np.array(classes, np.str_), return_inverse=True)
        known_n = np.array([head.knows(name) for name in names.tolist()], bool)[labels]
        query_n = head.embed(queries)
        item_n = query_n if np.array_equal(gallery, queries) else head.embed(gallery)
        by_known, by_new = slice(0, head.known_dim), head.slice_of_new
        known_dg, new_eg = item_n[known_n, by_known].T, item_n[~known_n, by_new].T
        others_n = np.bincount(labels)[labels] - 1
        found_n = np.full(len(queries), np.nan, np.float32)
        for at in range(0, len(queries), BLOCK):
            rows = np.arange(at, min(at + BLOCK, len(queries)))
            score_qg = np.empty((len(rows), len(queries)), np.float32)
            score_qg[:, known_n] = query_n[rows, by_known] @ known_dg
            cosine_qg = query_n[rows, by_new] @ new_eg
            score_qg[:, ~known_n] = np.float32(head.new_scale) * cosine_qg + np.float32(head.new_bonus)
            same_qg = labels[rows][:, None] == labels[None]
            score_qg[np.arange(len(rows)), rows] = -np.inf
            best_q1 = score_qg.max(axis=1, keepdims=True)
            found_n[rows] = ~((score_qg == best_q1) & ~same_qg).any(axis=1)
        found_n[others_n == 0] = np.nan
        return found_n

    return find


def evaluate_stage(
    held: HeldOut,
    forward: DriftMap,
    own_tasks: Collection[str],
    after: Finder,
    before: Finder,
) -> dict[str, Any]:
    """Return Recall@1 of the new version and, as served, of the one that it would replace, on the same images.

    By split and gallery form, re-extracted of each task's classes, and served of each class. Beside each comparison:
    how many queries it rests on, and its standard error. `after` and `before`: how the new version and its parent
    compare what their models give.
    """
    # At the commit the stage's own items are embedded anew; all others are only ever mapped.
    own = held.anew[:, None]
    served = np.where(own, held.fresh, forward.apply(held.mapped).astype(np.float32))
    forms = {"served": served, "reextracted": held.fresh, "stale": np.where(own, held.fresh, held.raw)}
    found: dict[str, Floats] = {}
    for form, gallery in forms.items():  # under one trunk they are all the same
        same = next((other for other in found if np.array_equal(forms[other], gallery)), None)
        found[form] = after(held.classes, held.fresh, gallery) if same is None else found[same]
    of_parent = before(held.classes, held.parent, held.mapped)
    new = np.isin(held.tasks, sorted(own_tasks))
    splits = {"old": ~new, "new": new, "union": np.ones(len(new), bool)}
    figures: dict[str, Any] = {
        key("recall_at_1", split, form): value
        for split, queries in splits.items()
        for form in forms
        if (value := mean_found(found[form][queries])) is not None
    }
    names, labels = np.unique(np.array(held.classes, np.str_), return_inverse=True)
    for split in splits:
        figures |= _compared(split, of_parent, found["served"], labels, splits[split])
    for name in np.unique(held.tasks):
        value = mean_found(found["reextracted"][held.tasks == name])
        if value is not None:
            figures[key("recall_at_1_of_task", name)] = value
    figures[key("recall_by_class")] = {
        name: round(value, 4)
        for label, name in enumerate(names.tolist())
        if (value := mean_found(found["served"][labels == label])) is not None
    }
    return figures


def _compared(
    split: str, before: Floats, after: Floats, labels: NDArray[np.int64], queries: NDArray[np.bool_]
) -> dict[str, float]:
    """Return the parent's Recall@1 on a split, how many queries can find anything, and the change's standard error."""
    known = queries & ~np.isnan(before)
    if not known.any():
        return {}
    figures = {
        key("parent_recall_at_1", split): float(before[known].mean()),
        key("queries", split): float(known.sum()),
    }
    error = change_error(after[known] - before[known], labels[known])
    return figures if error is None else {**figures, key("change_error", split): error}


def change_error(change_n: Floats, labels_n: NDArray[np.int64]) -> float | None:
    """Return the standard error of the mean change of queries, paired; None for fewer than two classes. Images of one
    class change together, so a class counts as one observation (cluster-robust: Liang and Zeger 1986)."""
    _, classes_n, counts = np.unique(labels_n, return_inverse=True, return_counts=True)
    n_classes = len(counts)
    if n_classes < 2:
        return None
    sums = np.bincount(classes_n, weights=change_n - change_n.mean(), minlength=n_classes)
    return float(np.sqrt(n_classes / (n_classes - 1) * np.square(sums).sum()) / len(change_n))


def beside_earlier(
    store: Store, parent: str, figures: Mapping[str, Any], held_out_set: str
) -> dict[str, Any]:
    """Return figures over time: the held-out set of these, and what they lost against earlier ones of that set."""
    lost = _forgetting(store, parent, figures, held_out_set)
    return {key("held_out_set"): held_out_set} | ({} if lost is None else {key("forgetting"): lost})


def _forgetting(store: Store, parent: str, figures: Mapping[str, Any], held_out_set: str) -> float | None:
    """Return the mean over earlier tasks of the best Recall@1 so far minus the one now; None before the second task."""
    lineage = [VersionMetrics.read(store.tree.get(version).metrics) for version in store.tree.lineage(parent)]
    lineage = [of for of in lineage if of.held_out_set in (held_out_set, None)]  # earlier releases noted none
    losses = []
    for task, now in VersionMetrics.read(figures).recall_at_1_of_task.items():
        earlier = (of.recall_at_1_of_task.get(task) for of in lineage)
        best = max((float(recall) for recall in earlier if recall is not None), default=None)
        if best is not None:
            losses.append(best - now)
    return float(np.mean(losses)) if losses else None


def mean_found(found: Floats) -> float | None:
    """Return the mean over queries that can find anything; None where no class has a second image."""
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else None
