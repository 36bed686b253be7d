"""The difference of two versions: figures side by side, and classes that gained or lost recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream_odml.store.version_metrics import is_figure, key

HELD_OUT_SET = key("held_out_set")
CLASS_RECALL = key("recall_by_class")
"""Key of a version's metrics: Recall@1 of each class, {class: 0..1}."""


def diff_versions(
    a: str, metrics_a: Mapping[str, Any], b: str, metrics_b: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the changes from version ``a`` to ``b`` out of their metrics; classes sorted by how much they changed."""
    before, after = _recalls(metrics_a), _recalls(metrics_b)
    changed: list[dict[str, Any]] = [
        {
            "class": name,
            "from": before[name],
            "to": after[name],
            "delta": round(after[name] - before[name], 6),
        }
        for name in before.keys() & after.keys()
        if after[name] != before[name]
    ]
    changed.sort(key=lambda row: (-abs(row["delta"]), row["class"]))
    return {
        "from": a,
        "to": b,
        "held_out_set": {"from": metrics_a.get(HELD_OUT_SET), "to": metrics_b.get(HELD_OUT_SET)},
        "metrics": _metrics(metrics_a, metrics_b),
        "gained": [row for row in changed if row["delta"] > 0],
        "lost": [row for row in changed if row["delta"] < 0],
        "unchanged": len(before.keys() & after.keys()) - len(changed),
        "new_classes": sorted(after.keys() - before.keys()),
        "gone_classes": sorted(before.keys() - after.keys()),
    }


def _recalls(metrics: Mapping[str, Any]) -> dict[str, float]:
    recalls = metrics.get(CLASS_RECALL)
    if not isinstance(recalls, Mapping):
        return {}
    return {str(name): float(value) for name, value in recalls.items() if is_figure(value)}


def _metrics(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    rows: dict[str, dict[str, float | None]] = {}
    for name in sorted(a.keys() | b.keys()):
        x, y = (m.get(name) if is_figure(m.get(name)) else None for m in (a, b))
        if x is None and y is None:
            continue
        rows[name] = {"from": x, "to": y, "delta": None if x is None or y is None else round(y - x, 6)}
    return rows
