"""The demo, measured by its own client: how fresh, how fast, how well, and whether any query failed.

    python -m benchmarks.demo

Over seeds 0 to 4: recalls and answered queries are the lowest of them, times the highest, refusals their sum.

``recall_at_1_union_served``: of all classes after the last task, on held-out images; beside it what the same stream
gets by the first learnt version for ever, and by fine-tuning without moving the gallery.
``landed_to_first_batch_s``: from the landing of a task's last shard until it was searchable, plus from the task's
hand-over to an idle trainer to its first step: of the first task, which alone takes steps and finds the trainer cold.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.common import Report, common_arguments, percentile
from stream_odml.cli.demo import demo_config, run_demo
from stream_odml.cli.versions_table import stage_rows
from stream_odml.store.store import Store

RECALLS = ("recall_at_1_union_served", "recall_at_1_union_frozen", "recall_at_1_union_finetuned_stale")
LOWEST = ("queries_ok", *RECALLS)
"""Figures of which the lowest over the seeds is reported; of all others the highest."""


def main() -> None:
    """Run the demo once for each seed and write `demo.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=3)
    common_arguments(parser)
    parser.set_defaults(seeds=[0, 1, 2, 3, 4])
    arguments = parser.parse_args()
    report = Report.begin("demo", arguments)
    runs = []
    for seed in report.seeds:
        report.say(f"seed {seed}")
        runs.append(_run(report, seed, 1 if arguments.quick else arguments.stages))
    for name in sorted({name for run in runs for name in run}):
        values = [run[name] for run in runs if name in run]
        # All refusals count, whatever seed had them.
        report.figure(name, sum(values) if name == "refused" else (min if name in LOWEST else max)(values))
    report.write()


def _run(report: Report, seed: int, stages: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        measured = run_demo(demo_config(root, seed, port=0, metrics_port=0), None, stages, Console())
        store = Store.open(str(root))
    rows = [
        {
            "seed": seed,
            **row,
            **asdict(measured.baselines[row["version"]]),
            "landed_to_first_batch_s": _landed_to_first_batch(store, row),
        }
        for row in stage_rows(store)
    ]
    report.rows += rows
    figures = measured.figures() | {"recall_at_1_union_served": rows[-1]["union_served"]}
    waits = [row["landed_to_first_batch_s"] for row in rows if row["landed_to_first_batch_s"] is not None]
    return figures | ({"landed_to_first_batch_s_p95": percentile(waits, 95)} if waits else {})


def _landed_to_first_batch(store: Store, row: dict[str, object]) -> float | None:
    first_step = row["boundary_to_first_step_s"]
    shards = (store.ledger.shards[shard] for shard in store.ledger.tasks[str(row["task"])].shard_ids)
    last = [shard for shard in shards if shard.format != "task"][-1]
    if not isinstance(first_step, float) or last.indexed_at is None:
        return None
    return float(last.indexed_at.timestamp() - last.detail["mtime_ns"] / 1e9 + first_step)


if __name__ == "__main__":
    main()
