"""The Grafana dashboard of a stream: ``python deploy/grafana/dashboard.py > deploy/grafana/dashboard.json``.

One `Panel` a picture; the rest is arranged here, so that a change of the dashboard is a change of a line.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

WIDTH = 24
HEIGHT = 8
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Panel:
    """One picture. ``queries`` are pairs of a legend and a PromQL expression; ``unit`` is Grafana's name."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    about: str = ""
    kind: str = "timeseries"
    width: int = 8


def _p(title: str, *queries: tuple[str, str], **rest: Any) -> Panel:
    return Panel(title, queries, **rest)


def _quantile(q: float, name: str, window: str, by: str = "") -> str:
    labels = f"le, {by}" if by else "le"
    return f"histogram_quantile({q}, sum by ({labels}) (rate({name}_bucket[{window}])))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Now": (
        _p(
            "Head",
            ("{{version}}", "stream_odml_head_info"),
            kind="stat",
            width=6,
            about="Version that is head.",
        ),
        _p("Head committed", ("ago", "stream_odml_head_age_seconds"), unit="s", kind="stat", width=3),
        _p("Classes", ("classes", "stream_odml_classes"), kind="stat", width=3),
        _p("Searchable items", ("items", "max(stream_odml_gallery_items)"), kind="stat", width=3),
        _p("Stages committed", ("stages", "stream_odml_stages_committed_total"), kind="stat", width=3),
        _p(
            "Tasks not learnt",
            ("{{state}}", "stream_odml_tasks_not_learnt"),
            kind="stat",
            width=3,
            about="Refused and tried again, or skipped; `stream-odml status ROOT` says why and what to do.",
        ),
        _p("Stale replicas", ("stale", "stream_odml:stale_replicas:count"), kind="stat", width=3),
    ),
    "Search": (
        _p(
            "Queries",
            ("{{kind}} {{outcome}}", "sum by (kind, outcome) (rate(stream_odml_queries_total[5m]))"),
            unit="reqps",
        ),
        _p(
            "Time to answer",
            ("p50 {{kind}}", "stream_odml:query_seconds:p50_rate5m"),
            ("p99 {{kind}}", "stream_odml:query_seconds:p99_rate5m"),
            unit="s",
        ),
        _p("Failed or turned away", ("share", "stream_odml:query_failures:ratio_rate5m"), unit="percentunit"),
        _p(
            "Version served",
            ("{{version}} on {{instance}}", "stream_odml_served_version_info"),
            about="Replicas change colour together at a stage commit; one that does not is stale.",
        ),
        _p(
            "Commit to served",
            ("p50", _quantile(0.5, "stream_odml_commit_to_served_seconds", "1h")),
            ("p95", "stream_odml:commit_to_served_seconds:p95_rate1h"),
            ("swap p95", _quantile(0.95, "stream_odml_swap_seconds", "1h")),
            unit="s",
        ),
        _p("Memory of the searcher", ("{{instance}}", "stream_odml_gallery_bytes"), unit="bytes"),
    ),
    "Arrival": (
        _p(
            "Images",
            ("{{outcome}}", "sum by (outcome) (rate(stream_odml_images_total[5m]))"),
            about="Images a second by what became of them.",
        ),
        _p(
            "Landed to searchable",
            ("p50", _quantile(0.5, "stream_odml_landed_to_indexed_seconds", "10m")),
            ("p95", "stream_odml:landed_to_indexed_seconds:p95_rate10m"),
            unit="s",
        ),
        _p("Shards", ("{{state}}", "stream_odml_shards_total")),
        _p("Waiting shards", ("{{queue}}", "stream_odml_queue_shards")),
        _p("Oldest waiting", ("{{queue}}", "stream_odml_queue_age_seconds"), unit="s"),
        _p(
            "Quarantined rows",
            ("{{reason}}", "sum by (reason) (increase(stream_odml_quarantined_rows_total[1h]))"),
            ("share of arrivals", "stream_odml:quarantine:ratio_rate15m"),
            ("there now", "sum(stream_odml_quarantine_rows)"),
            about="Rows quarantined in the last hour, by reason, and all that are in quarantine now.",
        ),
        _p(
            "Out of reach",
            ("{{of}}", "increase(stream_odml_retries_total[5m])"),
            about="What was asked for again in the last five minutes: a store that throttles or is away.",
        ),
    ),
    "Topics": (
        _p(
            "Not searchable yet",
            ("{{topic}}/{{partition}}", "stream_odml_topic_lag_messages"),
            about="Messages of each partition that the topic has and search does not.",
        ),
        _p(
            "Messages",
            ("{{topic}}/{{partition}}", "rate(stream_odml_topic_offset_total[5m])"),
            about="Messages a second of each partition that became searchable or were quarantined.",
        ),
        _p(
            "Missing messages",
            ("{{topic}}/{{partition}}", "stream_odml_topic_lost_messages_total"),
            (
                "holes: {{reason}}",
                'increase(stream_odml_quarantined_rows_total{reason=~"lost_messages|absent_messages"}[1h])',
            ),
            ("soon: {{topic}}/{{partition}}", "stream_odml_topic_at_risk_messages"),
            about="Deleted by retention before they were read, or soon; and runs of offsets without a message.",
        ),
        _p(
            "Not read",
            ("{{topic}}/{{partition}}", "stream_odml_topic_trouble"),
            about="1 where messages of a partition do not come while those of others may; -1 is a whole topic.",
        ),
    ),
    "Learning": (
        _p(
            "Task closed to learnt",
            ("p50", _quantile(0.5, "stream_odml_closed_to_learnt_seconds", "1h")),
            ("p95", _quantile(0.95, "stream_odml_closed_to_learnt_seconds", "1h")),
            unit="s",
        ),
        _p("Phase", ("{{phase}}", "stream_odml_phase == 1"), about="What the trainer does."),
        _p(
            "Stage progress",
            ("share done", "stream_odml_stage_step / (stream_odml_stage_steps > 0)"),
            unit="percentunit",
        ),
        _p("Loss", ("{{part}}", "stream_odml_loss")),
        _p(
            "Step",
            ("p50", _quantile(0.5, "stream_odml_step_seconds", "5m")),
            ("p95", _quantile(0.95, "stream_odml_step_seconds", "5m")),
            ("waiting for data p95", _quantile(0.95, "stream_odml_data_wait_seconds", "5m")),
            unit="s",
        ),
        _p(
            "Boundary to first step",
            ("p95", _quantile(0.95, "stream_odml_boundary_to_first_step_seconds", "6h")),
            unit="s",
        ),
        _p(
            "Commit to the store",
            ("p95 {{commit}}", _quantile(0.95, "stream_odml_commit_seconds", "1h", "commit")),
            unit="s",
        ),
        _p("Workers", ("workers", "stream_odml_train_workers"), width=12),
        _p("Writer epoch", ("epoch", "stream_odml_writer_epoch"), width=12, about="Grows at each takeover."),
    ),
    "Quality": (
        _p("Recall@1", ("{{split}} {{gallery}}", "stream_odml_recall_at_1"), unit="percentunit"),
        _p(
            "Forgetting",
            ("forgetting", "stream_odml_forgetting"),
            about="Best Recall@1 on old classes minus now.",
        ),
        _p("Drift of the last stage", ("{{measure}}", "stream_odml_drift")),
    ),
    "Cluster": (
        _p("CPU of each node", ("{{instance}}", "ray_node_cpu_utilization"), unit="percent"),
        _p("Memory of each node", ("{{instance}}", "ray_node_mem_used_host"), unit="bytes"),
        _p("GPU of each node", ("{{instance}}", "ray_node_gpus_utilization"), unit="percent"),
    ),
}


def dashboard() -> dict[str, Any]:
    """The whole dashboard as Grafana imports it."""
    panels: list[dict[str, Any]] = []
    top = 0
    for title, row in ROWS.items():
        place = {"x": 0, "y": top, "w": WIDTH, "h": 1}
        panels.append(
            {"id": len(panels) + 1, "type": "row", "title": title, "gridPos": place, "collapsed": False}
        )
        top = _arrange(row, panels, top + 1)
    return {
        "uid": "stream-odml",
        "title": "stream_odml",
        "tags": ["stream_odml"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "10s",
        "time": {"from": "now-3h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": panels,
    }


def _arrange(row: tuple[Panel, ...], panels: list[dict[str, Any]], top: int) -> int:
    """Append ``row``, left to right and line by line; return the first free height below it."""
    left = 0
    for panel in row:
        if left + panel.width > WIDTH:
            left, top = 0, top + HEIGHT
        place = {"x": left, "y": top, "w": panel.width, "h": HEIGHT}
        panels.append(_render(panel, len(panels) + 1, place))
        left += panel.width
    return top + HEIGHT


def _render(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + i), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        for i, (legend, expr) in enumerate(panel.queries)
    ]
    options = {"textMode": "name"} if panel.title == "Head" else {}
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.about,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": {"defaults": {"unit": panel.unit}, "overrides": []},
        "options": options,
    }


if __name__ == "__main__":
    json.dump(dashboard(), sys.stdout, indent=2)
    sys.stdout.write("\n")
