"""Figures are read from the store, so that they survive any process; names follow Prometheus."""

from __future__ import annotations

from pathlib import Path

from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from stream_odml.pipeline.figures import stream_figures
from stream_odml.pipeline.messages import StageProgress
from stream_odml.pipeline.metrics import DriverMetrics
from stream_odml.store.version_metrics import key
from tests.cluster.small_root import artifacts, claim, index, shard


def test_counts_come_from_the_ledger(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    refs = [shard("a"), shard("b"), shard("c")]
    writer.record_landed(refs)
    index(writer, refs[0], {"oak": 4, "elm": 2}, held_out=1)
    index(writer, refs[1], {"ash": 3})
    writer.close_task("task-0001", [refs[0].shard_id], "test")
    version = writer.begin_attempt("task-0001")
    metrics = {key("recall_at_1", "union", "served"): 0.75, "forgetting": 0.01, "drift/relative": 0.2}
    rows = writer.store.gallery_rows().slice(0, 0)
    writer.commit_stage(
        version, writer.store.tree.head, "task-0001", artifacts(writer, version), rows, metrics
    )
    figures = stream_figures(writer.store, writer.epoch)
    writer.release()
    assert figures.shards == {"landed": 3, "indexed": 2, "assigned": 1, "learnt": 1, "set_aside": 0}
    assert figures.images == {"ingested": 9, "quarantined": 0, "held_out": 2, "learnt": 4}
    assert figures.queue_shards == {"index": 1, "boundary": 1, "learn": 0}
    assert (figures.classes, figures.stages_committed, figures.head) == (3, 1, version)
    assert figures.recall_at_1 == {("union", "served"): 0.75}
    assert (figures.forgetting, figures.drift) == (0.01, {"relative": 0.2})


def test_a_counter_does_not_fall_on_a_rollback(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    ref = shard("a")
    writer.record_landed([ref])
    index(writer, ref, {"oak": 4, "elm": 2})
    writer.close_task("task-0001", [ref.shard_id], "test")
    root = writer.store.tree.head
    rows = writer.store.gallery_rows().slice(0, 0)
    for _ in range(2):  # learnt, rolled back, learnt again: one shard all the same
        version = writer.begin_attempt("task-0001")
        writer.commit_stage(version, root, "task-0001", artifacts(writer, version), rows)
        assert stream_figures(writer.store, 1).queue_shards["learn"] == 0
        writer.move_head(root, "rollback")
        figures = stream_figures(writer.store, 1)
        assert (figures.shards["learnt"], figures.images["learnt"]) == (1, 6)
        assert figures.queue_shards["learn"] == 1
    writer.release()


def test_the_exporter_gives_what_was_reported() -> None:
    metrics = DriverMetrics()
    metrics.report(
        StageProgress(
            "training", "task-0002", "v2", 2, 5, 10, {"total": 1.5}, (0.1, 0.2), (0.01, 0.02), 0.7, workers=2
        )
    )
    families = {f.name: f for f in text_string_to_metric_families(generate_latest(metrics.registry).decode())}
    assert all(name.startswith("stream_odml_") for name in families)
    samples = {(s.name, *s.labels.values()): s.value for f in families.values() for s in f.samples}
    assert samples["stream_odml_loss", "total"] == 1.5
    assert samples["stream_odml_phase", "training"] == 1
    assert samples["stream_odml_phase", "idle"] == 0
    assert samples[("stream_odml_step_seconds_count",)] == 2
    assert samples[("stream_odml_step_seconds_sum",)] == 0.1 + 0.2
    assert samples[("stream_odml_boundary_to_first_step_seconds_sum",)] == 0.7
