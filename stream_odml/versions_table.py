"""The figures of each version on the head's lineage, as a table's rows: for the console and for scripts."""

from __future__ import annotations

from typing import Any

from stream_odml.cluster.figures import recall_key
from stream_odml.gallery.store import Store


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
