"""What the driver tells Prometheus.

Counts and ages are read from the ledger at each scrape, so a restarted driver reports the same totals;
only durations (histograms) and the progress of the running stage live in memory.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from prometheus_client import CollectorRegistry, Histogram, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from stream_odml.ingest.reasons import Reason
from stream_odml.ingest.sources import LogFigures
from stream_odml.pipeline.messages import StageProgress

PREFIX = "stream_odml"
PHASES = ("idle", "caching", "training", "evaluating", "committing")
STATES = ("landed", "indexed", "assigned", "learnt", "set_aside")
OUTCOMES = ("ingested", "quarantined", "held_out", "learnt")
LATENCY_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2, 3, 5, 10, 30, 60, 300, 1800)
TASKS_NAMED, REASON_LENGTH = 20, 200
"""Bounds of what is said of single tasks: a label is kept for every value that it ever had."""
STEP_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)


@dataclass
class StreamFigures:
    """One consistent reading of the stream, taken under the driver's lock. `shards` counts by state, `images` by
    outcome, `quarantined` rows by reason; `queue_shards` and `queue_age_s` by queue (`index`, `boundary`,
    `learn`), ages in seconds of the oldest entry."""

    shards: Mapping[str, int] = field(default_factory=dict)
    images: Mapping[str, int] = field(default_factory=dict)
    quarantined: Mapping[str, int] = field(default_factory=dict)
    in_quarantine: Mapping[str, int] = field(default_factory=dict)
    """Rows by reason that are there still: `quarantined` is a counter, which an erasure does not lower."""
    queue_shards: Mapping[str, int] = field(default_factory=dict)
    queue_age_s: Mapping[str, float] = field(default_factory=dict)
    classes: int = 0
    """Of what was indexed, without those erased as a whole. One whose items were all erased or replaced one by one
    counts: to know would take reading the gallery."""
    stages_committed: int = 0
    gate_refusals: int = 0
    epoch: int = 0
    head: str = ""
    head_committed_at: float = 0.0
    recall_at_1: Mapping[tuple[str, str], float] = field(default_factory=dict)
    forgetting: float | None = None
    held_out_set: str | None = None
    """Which held-out images recall and forgetting are of."""
    drift: Mapping[str, float] = field(default_factory=dict)
    slow_stage: Mapping[str, float] = field(default_factory=dict)
    """Of the last slow stage that was published: Recall@1 over all classes that it serves (`slow`), that it serves once
    all items are embedded anew (`renewed`), and of the version without it (`fast`)."""
    renewal: Mapping[str, int] = field(default_factory=dict)
    """Items by how they follow the trunk: `exact`, `mapped` or `gone`, see `later_stages.renewal`."""
    not_learnt: Sequence[Mapping[str, Any]] = ()
    """Tasks that were refused or skipped, see `stream_odml.store.unlearnt`."""
    logs: Sequence[LogFigures] = ()
    """How far each partition of a log is read, where the source is one."""
    retries: Mapping[str, int] = field(default_factory=dict)
    """What was unreachable and is asked for again, by this driver: `list`, `read`, `commit`, `stage`."""

    def as_status(self) -> dict[str, Any]:
        """Return the figures by name, with what is in quarantine now in place of the counter."""
        figures = {each.name: getattr(self, each.name) for each in fields(self)}
        refused = dict(figures.pop("in_quarantine"))
        images = {**self.images, "quarantined": sum(refused.values())}
        return {**figures, "images": images, "quarantined": refused}


class DriverMetrics(Collector):
    """Registry and exporter of one driver; `figures` and `progress` are replaced, never mutated."""

    def __init__(self) -> None:
        self.figures = StreamFigures()
        self.progress = StageProgress()
        self.registry = CollectorRegistry()
        self.registry.register(self)
        histogram = partial(Histogram, namespace=PREFIX, registry=self.registry)
        latency = partial(histogram, buckets=LATENCY_BUCKETS)
        of_step = partial(histogram, buckets=STEP_BUCKETS)
        text = "Time from a shard's landing to its vectors being committed."
        self.searchable = latency("landed_to_indexed_seconds", text)
        self.commit = latency("commit_seconds", "Time of one commit to the store.", ("commit",))
        for kind in ("ingest", "stage"):
            self.commit.labels(kind)
        text = "Time from a task's hand-over to its first training step."
        self.first_batch = latency("boundary_to_first_step_seconds", text)
        text = "Time from a task's closing to its version being committed."
        self.closed_to_learnt = latency("closed_to_learnt_seconds", text)
        self.step = of_step("step_seconds", "Time of one training step.")
        self.data_wait = of_step("data_wait_seconds", "Time a training step waited for its batch.")

    def serve(self, port: int, host: str = "127.0.0.1") -> int:
        """Start the exporter and return its port (`port` 0: any free one). Raises OSError if taken."""
        server, _ = start_http_server(port, addr=host, registry=self.registry)
        return int(server.server_port)

    def report(self, progress: StageProgress) -> None:
        """Take over what rank 0 reports, and observe its durations."""
        self.progress = progress
        for seconds in progress.step_s:
            self.step.observe(seconds)
        for seconds in progress.data_wait_s:
            self.data_wait.observe(seconds)
        if progress.first_step_s is not None:
            self.first_batch.observe(progress.first_step_s)

    def collect(self) -> Iterable[Metric]:
        """Yield every family that the ledger or the running stage defines."""
        yield from _stream(self.figures)
        yield from _quality(self.figures)
        yield from _stage(self.progress)


def _stream(now: StreamFigures) -> Iterable[Metric]:
    # Every label is there from the beginning, at zero: a rate over a series that has only just appeared is empty.
    yield _counter("shards", "Shards by the state they reached.", "state", _zeros(STATES) | dict(now.shards))
    images = _zeros(OUTCOMES) | dict(now.images)
    yield _counter("images", "Images by what became of them.", "outcome", images)
    reasons = _zeros(map(str, Reason)) | dict(now.quarantined)
    yield _counter("quarantined_rows", "Quarantined rows, by reason.", "reason", reasons)
    there = _zeros(reasons) | dict(now.in_quarantine)
    yield _gauge("quarantine_rows", "Rows in quarantine now, without what was erased.", "reason", there)
    yield _counter("retries", "Retries of what was unreachable, by operation.", "of", now.retries)
    yield _gauge("queue_shards", "Shards that wait, by queue.", "queue", now.queue_shards)
    yield _gauge("queue_age_seconds", "Age of the oldest waiting shard.", "queue", now.queue_age_s)
    yield _gauge("classes", "Classes that were indexed, without those erased as a whole.", "", now.classes)
    yield _gauge("writer_epoch", "Epoch of the committing writer; grows at each takeover.", "", now.epoch)
    yield _counter("stages_committed", "Stages that became a version.", "", now.stages_committed)
    yield _counter("gate_refusals", "Stages that the quality gate refused.", "", now.gate_refusals)
    states = _zeros(("refused", "skipped")) | Counter(task["state"] for task in now.not_learnt)
    yield _gauge("tasks_not_learnt", "Tasks that were refused or skipped, by state.", "state", states)
    text = f"1 for each of the last {TASKS_NAMED} tasks that were refused or skipped, and why."
    last = [(task["task"], task["state"], task["reason"][:REASON_LENGTH]) for task in now.not_learnt]
    yield _gauge("task_not_learnt_info", text, "task state reason", dict.fromkeys(last[-TASKS_NAMED:], 1))
    yield from _logs(now.logs)


def _logs(logs: Sequence[LogFigures]) -> Iterable[Metric]:
    def of(logs: Iterable[LogFigures], figure: str) -> dict[tuple[str, str], float]:
        return {(one.topic, str(one.partition)): float(getattr(one, figure)) for one in logs}

    names, read = "topic partition", [one for one in logs if one.is_partition]
    text = "Messages of a partition that are not searchable yet."
    yield _gauge("topic_lag_messages", text, names, of(read, "lag"))
    text = "Offset up to which a partition is searchable."
    yield _counter("topic_offset", text, names, of(read, "searchable"))
    text = "Messages deleted from a topic before they were read."
    yield _counter("topic_lost_messages", text, names, of(read, "lost"))
    troubled = {(one.topic, str(one.partition)): bool(one.trouble) for one in logs}
    text = "1 where messages of a partition do not come; partition -1: of a whole topic."
    yield _gauge("topic_trouble", text, names, troubled)
    text = "Messages of a partition that are not read and that the topic deletes soon."
    yield _gauge("topic_at_risk_messages", text, names, of(read, "at_risk"))


def _quality(now: StreamFigures) -> Iterable[Metric]:
    yield _gauge("head_info", "1 for the head version.", "version", {now.head: 1} if now.head else {})
    if now.head:
        age = max(0.0, time.time() - now.head_committed_at)
        yield _gauge("head_age_seconds", "Time since the head version was committed.", "", age)
    text = "Recall@1 on held-out images by split and gallery form."
    yield _gauge("recall_at_1", text, "split gallery", now.recall_at_1)
    if now.forgetting is not None:
        text = "Best Recall@1 on old classes so far minus now."
        yield _gauge("forgetting", text, "", now.forgetting)
    yield _gauge("drift", "Embedding drift of the last stage.", "measure", now.drift)
    text = "Recall@1 over all classes after the last slow stage, and without it."
    yield _gauge("slow_stage_recall_at_1", text, "version", now.slow_stage)
    text = "Learnt items by how they follow the trunk that serves."
    yield _gauge("items_by_trunk", text, "state", now.renewal)


def _stage(now: StageProgress) -> Iterable[Metric]:
    yield _gauge("stage", "Depth of the version that is being learnt.", "", now.stage)
    yield _gauge("phase", "1 for the phase of the trainer.", "phase", {p: p == now.phase for p in PHASES})
    yield _gauge("stage_step", "Steps done in the running stage.", "", now.step)
    yield _gauge("stage_steps", "Steps of the running stage in all.", "", now.total_steps)
    yield _gauge("train_workers", "Data-parallel workers in the running stage.", "", now.workers)
    if now.leader:
        yield _gauge("train_leader_info", "1 for host and process of rank 0.", "process", {now.leader: 1})
    yield _gauge("loss", "Last loss of the running stage by part.", "part", now.losses)


def _zeros(names: Iterable[str]) -> dict[str, int]:
    return dict.fromkeys(names, 0)


def _filled(
    kind: type[GaugeMetricFamily | CounterMetricFamily],
    name: str,
    text: str,
    labels: str,
    values: Mapping[Any, Any] | float,
) -> Metric:
    """Return a family with these labels, and of each label (or labels) its value; without labels one value. One figure
    that is no number, or a name that is no text, must not cost a scrape all the others."""
    family = kind(f"{PREFIX}_{name}", text, labels=labels.split())
    for key, value in values.items() if isinstance(values, Mapping) else [((), values)]:
        if hasattr(value, "__float__"):
            parts = key if isinstance(key, tuple) else (key,)
            family.add_metric([str(part) for part in parts], float(value))
    return family


_gauge, _counter = partial(_filled, GaugeMetricFamily), partial(_filled, CounterMetricFamily)
