"""The difference of two versions: figures side by side, and classes that gained or lost recall."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stream_odml.store.version_metrics import VersionMetrics, is_figure


def diff_versions(
    a: str, metrics_a: Mapping[str, Any], b: str, metrics_b: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the changes from version `a` to `b` out of their metrics; classes sorted by how much they changed."""
    was, now = VersionMetrics.read(metrics_a), VersionMetrics.read(metrics_b)
    before, after = was.recall_by_class, now.recall_by_class
    both = before.keys() & after.keys()
    changed: list[dict[str, Any]] = [
        {"class": name, **_change(before[name], after[name])} for name in both if after[name] != before[name]
    ]
    changed.sort(key=lambda row: (-abs(row["delta"]), row["class"]))
    return {
        "from": a,
        "to": b,
        "held_out_set": {"from": was.held_out_set, "to": now.held_out_set},
        "metrics": _metrics(metrics_a, metrics_b),
        "gained": [row for row in changed if row["delta"] > 0],
        "lost": [row for row in changed if row["delta"] < 0],
        "unchanged": len(both) - len(changed),
        "new_classes": sorted(after.keys() - before.keys()),
        "gone_classes": sorted(before.keys() - after.keys()),
    }


def _metrics(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    figures = [{name: value for name, value in of.items() if is_figure(value)} for of in (a, b)]
    names = sorted(figures[0].keys() | figures[1].keys())
    return {name: _change(*(of.get(name) for of in figures)) for name in names}


def _change(x: float | None, y: float | None) -> dict[str, float | None]:
    return {"from": x, "to": y, "delta": None if x is None or y is None else round(y - x, 6)}
