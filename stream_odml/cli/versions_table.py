"""The figures of each version on the head's lineage as a table's rows, and two of them compared."""

from __future__ import annotations

from typing import Any

from stream_odml.pipeline.figures import recall_key
from stream_odml.search.version_diff import diff_versions
from stream_odml.store.store import Store
from stream_odml.store.unlearnt import unlearnt_tasks


def stage_rows(store: Store) -> list[dict[str, Any]]:
    """One row for each learnt version from the root to the head, oldest first; absent figures are None."""
    rows = []
    classes = 0
    for version_id in store.tree.lineage(store.tree.head)[1:]:
        version = store.tree.get(version_id)
        metrics = version.metrics
        classes += int(metrics.get("classes", 0))
        row: dict[str, Any] = {
            "version": version_id,
            "parent": version.parent,
            "task": version.task,
            "committed_at": version.time.isoformat(),
            "classes": classes,
        }
        for split in ("union", "old", "new"):
            for form in ("served", "reextracted", "stale"):
                row[f"{split}_{form}"] = metrics.get(recall_key(split, form))
        for name in ("forgetting", "boundary_to_first_step_s", "seconds", "steps"):
            row[name] = metrics.get(name)
        rows.append(row)
    return rows


def unlearnt_lines(store: Store) -> list[str]:
    """A line for every task that was refused or skipped and that the head has not learnt: why, and what to do."""
    if not store.tree.moves:
        return []
    return [task.in_words() for task in unlearnt_tasks(store.ledger, store.tree, root=store.uri)]


def diff_of(store: Store, a: str, b: str) -> dict[str, Any]:
    """What changed from version ``a`` to ``b``, each by its id, its beginning, or ``head``. Raises UnknownVersion."""
    first, second = (store.tree.get(store.tree.named(name)) for name in (a, b))
    return diff_versions(first.version_id, first.metrics, second.version_id, second.metrics)
