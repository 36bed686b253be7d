"""Ingestion that outruns the machine: a backlog landed at one instant, the lag that is told, the memory it takes."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from benchmarks.common import Report
from benchmarks.ingest.watching import MemoryWatch
from benchmarks.ingest.whole_task import ROLES, SHARD_ROWS, made_shard, stream_config
from stream_odml.cluster.session import run_stream
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store

TIMES = 10
"""The second backlog is so many times the first: memory must not follow."""
WAIT_S = 900.0


def measure(report: Report, seed: int) -> None:
    """Two backlogs, one after the other; peaks of each process after the small one and after the large one."""
    small = 3 if report.quick else 20
    with tempfile.TemporaryDirectory() as folder:
        config = stream_config(Path(folder), seed)
        inbox = Path(inbox_path(config))
        inbox.mkdir(parents=True)
        with MemoryWatch(ROLES) as watch, run_stream(config) as session:
            _work_off(report, session, inbox, seed, 0, small)
            before = watch.peaks()
            seen = _work_off(report, session, inbox, seed, small, small * TIMES)
        items = Store.open(config.root).gallery_rows(vectors=False)["item_id"]
    images = small * (1 + TIMES) * SHARD_ROWS
    report.row(
        part="backlog", seed=seed, images=images, shards=small * TIMES, lag=seen, peak_mib=watch.peaks(),
        small_backlog_peak_mib=before,
    )  # fmt: skip
    report.figure("backlog_images", small * TIMES * SHARD_ROWS)
    report.figure("backlog_lag_shards_told", max(sample["shards"] for sample in seen))
    report.figure("backlog_lag_s_told", max(sample["age_s"] for sample in seen))
    report.figure("backlog_images_per_s", small * TIMES * SHARD_ROWS / seen[-1]["at_s"])
    report.figure("backlog_rows_lost_or_twice", abs(images - len(items)) + len(items) - len(items.unique()))
    for role, mib in watch.peaks().items():
        report.figure(f"backlog_growth_mib_{role}", mib - before.get(role, 0.0))


def _work_off(
    report: Report, session: Any, inbox: Path, seed: int, first: int, count: int
) -> list[dict[str, float]]:
    """Show ``count`` shards at once and wait until all are indexed; the lag as `status` told it meanwhile."""
    numbers = range(first, first + count)
    for number in report.track(numbers, "shards made"):
        pq.write_table(made_shard(seed, number), inbox / f".s{number:05d}.parquet", row_group_size=256)
    for number in numbers:
        (inbox / f".s{number:05d}.parquet").rename(inbox / f"s{number:05d}.parquet")
    began, seen = time.perf_counter(), list[dict[str, float]]()
    while True:
        status = session.status(timeout_s=60)
        at = time.perf_counter() - began
        seen.append(
            {"at_s": at, "shards": status["queue_shards"]["index"], "age_s": status["queue_age_s"]["index"]}
        )
        if status["shards"].get("indexed", 0) == first + count:
            return seen
        if at > WAIT_S:
            raise TimeoutError(
                f"{seen[-1]['shards']} of {count} shards are still to be indexed after {at:.0f} s"
            )
        time.sleep(0.5)
