"""The demo, measured by its own client: how fresh, how fast, how well, and whether any query failed.

    python -m benchmarks.demo

Over seeds 0 to 4: recalls and answered queries are the lowest of them, times the highest, refusals their sum.

``recall_at_1_union_served``: of all classes after the last task, on held-out images; beside it what the same stream
gets by the first learnt version for ever, and by fine-tuning without moving the gallery.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.common import Report, common_arguments
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
    rows = [{"seed": seed, **row, **asdict(measured.baselines[row["version"]])} for row in stage_rows(store)]
    report.rows += rows
    return measured.figures() | {"recall_at_1_union_served": rows[-1]["union_served"]}


if __name__ == "__main__":
    main()
