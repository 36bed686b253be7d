"""The figures of each version on the head's lineage as a table's rows, and two of them compared."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from stream_odml.cli.console import say, stage_table
from stream_odml.config.masking import masked_text
from stream_odml.search.version_diff import diff_versions
from stream_odml.store.store import Store
from stream_odml.store.unlearnt import unlearnt_tasks
from stream_odml.store.version_metrics import FORMS, SPLITS, VersionMetrics

SHOWN = (
    "forgetting",
    "closed_to_learnt_s",
    "boundary_to_first_step_s",
    "seconds",
    "steps",
)
"""Metrics of one value that `versions` and the report show, besides Recall@1."""


def stage_rows(store: Store) -> list[dict[str, Any]]:
    """Return a row per learnt version from the root to the head, oldest first; figures not measured are None."""
    rows = []
    learnt: set[str] = set()
    tree = store.tree
    for version_id in tree.lineage(tree.head)[1:]:
        version = tree.get(version_id)
        metrics = VersionMetrics.read(version.metrics)
        learnt |= _learnt_classes(store, version.task)
        row: dict[str, Any] = {
            "version": version_id,
            "parent": version.parent,
            "task": version.task,
            # The version that learnt it: under a discriminant head many versions share one.
            "trunk": next(v for v in tree.lineage(version_id) if tree.same_trunk(v, version_id)),
            "stage": metrics.kind,
            # Of a slow stage the parent is the fast version, the floor that it had to pass.
            "union_parent": metrics.parent_recall_at_1.get("union"),
            "held_out_set": metrics.held_out_set,
            "committed_at": version.time.isoformat(),
            # The sums of a solved head know exactly how many classes it tells apart; `metrics.classes` is of one task.
            "classes": int(metrics.head.get("classes", len(learnt))),
        }
        for split in SPLITS:
            for form in FORMS:
                row[f"{split}_{form}"] = metrics.recall(split, form)
        for name in SHOWN:
            row[name] = getattr(metrics, name)
        rows.append(row)
    return rows


def _learnt_classes(store: Store, task: str | None) -> set[str]:
    """Return the classes of a task that has images to learn from, whatever was erased since."""
    shards = store.ledger.shards_of([task]) if task and task in store.ledger.tasks else []
    counts = (store.ledger.shards[shard].counts.get("trainable", {}) for shard in shards)
    return {name for count in counts for name, images in count.items() if images}


def held_out_lines(store: Store) -> list[str]:
    """Return a line per version of the head's lineage that was measured on another held-out set than the one before."""
    lines, before, last = [], None, ""
    for version_id in store.tree.lineage(store.tree.head) if store.tree.moves else ():
        found = VersionMetrics.read(store.tree.get(version_id).metrics).held_out_set
        if found is not None and before is not None and found != before:
            lines.append(
                f"{version_id} was measured on the held-out set {found}, versions up to {last} on {before}: "
                "their figures do not compare"
            )
        before, last = (before, last) if found is None else (found, version_id)
    return lines


def say_versions(console: Console, store: Store) -> None:
    """Print the table of versions, and below it which figures do not compare, and each refused or skipped task that the
    head has not learnt, with the reason and the remedy."""
    console.print(stage_table(stage_rows(store)))
    tasks = unlearnt_tasks(store.ledger, store.tree, root=masked_text(store.uri)) if store.tree.moves else []
    for line in (*held_out_lines(store), *(task.in_words() for task in tasks)):
        say(console, line, "yellow")


def diff_of(store: Store, a: str, b: str) -> dict[str, Any]:
    """Compare version `a` with `b`, each an id, a prefix of one, or `head`. Raises UnknownVersion."""
    first, second = (store.tree.get(store.tree.named(name)) for name in (a, b))
    return diff_versions(first.version_id, first.metrics, second.version_id, second.metrics)
