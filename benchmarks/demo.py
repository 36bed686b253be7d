"""The demo, measured by its own client: how fresh, how fast, how well, and whether any query failed.

    python -m benchmarks.demo

``landed_to_first_batch_s``: from the landing of a task's last shard until it was searchable, plus from the task's
hand-over to an idle trainer to its first step; the first task of a session, which finds the trainer cold, is in
the rows but not in the figure.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from rich.console import Console

from benchmarks.common import Report, common_arguments, percentile
from stream_odml.commands.demo import demo_config, run_demo
from stream_odml.commands.versions_table import stage_rows
from stream_odml.gallery.store import Store


def main() -> None:
    """Run the demo once and write `demo.json`."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--stages", type=int, default=3)
    common_arguments(parser)
    arguments = parser.parse_args()
    report = Report.begin("demo", arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        config = demo_config(root, report.seeds[0], port=0, metrics_port=0)
        measured = run_demo(config, None, 1 if arguments.quick else arguments.stages, Console())
        store = Store.open(str(root))
    rows = stage_rows(store)
    report.rows += [{**row, "landed_to_first_batch_s": _landed_to_first_batch(store, row)} for row in rows]
    report.figures |= measured.figures()
    warm = [row["landed_to_first_batch_s"] for row in report.rows[1:]]
    report.figure("landed_to_first_batch_s_p95", percentile([s for s in warm if s is not None], 95))
    report.figure("recall_at_1_union_served", rows[-1]["union_served"])
    report.write()


def _landed_to_first_batch(store: Store, row: dict[str, object]) -> float | None:
    first_step = row["boundary_to_first_step_s"]
    members = store.ledger.tasks[str(row["task"])].shard_ids
    last = store.ledger.shards[members[-1]]
    if not isinstance(first_step, float) or last.indexed_at is None:
        return None
    return float(last.indexed_at.timestamp() - last.detail["mtime_ns"] / 1e9 + first_step)


if __name__ == "__main__":
    main()
