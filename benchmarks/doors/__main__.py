"""Measure adoption, upgrades, synchronisation, export and canaries: `doors.json`.

    python -m benchmarks.doors                       # all parts, full size
    python -m benchmarks.doors --parts adopt --quick
    python -m benchmarks.doors --parts upgrade --seeds 0 1 2 3 4 --resume   # goes on where it was ended
    python -m benchmarks.doors --parts upgrade-order --seeds 0 1 2 3 4 5 6 7 8 9 15 16 17 18 19 20 21 22 23 24 \\
        25 26 27 28 29   # without those by which the order was chosen

`upgrade` and `sync` are all parts that begin so. The result file is written after each part and seed.
Every part works in a folder of its own, on vectors that it makes up, but for `upgrade`, which needs real images.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import Report, common_arguments
from benchmarks.doors.adopting import measure_adopt, measure_recall
from benchmarks.doors.canaries import measure_canaries
from benchmarks.doors.exporting import measure_onnx
from benchmarks.doors.syncing import KILLS, measure_sync, sum_up
from benchmarks.doors.upgrading import CHANGES, measure_upgrade

PARTS: dict[str, Callable[[Report, Path, int], None]] = {
    "adopt": measure_adopt,
    "recall": measure_recall,
    **{f"upgrade-{change}": partial(measure_upgrade, change) for change in CHANGES},
    **{f"sync-{kind}": partial(measure_sync, kind) for kind in KILLS},
    "onnx": measure_onnx,
    "canaries": measure_canaries,
}
GROUPS = {group: [part for part in PARTS if part.startswith(f"{group}-")] for group in ("upgrade", "sync")}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.doors",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    common_arguments(parser)
    parser.add_argument("--parts", nargs="+", choices=[*GROUPS, *PARTS], default=list(PARTS))
    parser.add_argument("--resume", action="store_true", help="leave out the seeds that the result file has")
    arguments = parser.parse_args()
    report = Report.begin("doors", arguments)
    parts = [name for given in arguments.parts for name in GROUPS.get(given, [given])]
    if arguments.resume:
        report.rows += rows_before(report, parts)
    done = {(row["part"], row["seed"]) for row in report.rows}
    for part in parts:
        for seed in arguments.seeds:
            if (part, seed) in done:
                report.say(f"part {part}, seed {seed}: measured before")
                continue
            with tempfile.TemporaryDirectory(prefix="stream-odml-doors-") as folder:
                report.say(f"part {part}, seed {seed}")
                PARTS[part](report, Path(folder), seed)
            sum_up(report)
            report.write(keep=True)


def rows_before(report: Report, parts: Sequence[str]) -> list[dict[str, Any]]:
    """Return rows of these parts and of this run's seeds that the result file has from a run of the same size."""
    file = report.out / f"{report.name}.json"
    before = json.loads(file.read_text()) if file.exists() else {"quick": None, "rows": []}
    if before["quick"] != report.quick:
        return []
    return [row for row in before["rows"] if row.get("part") in parts and row.get("seed") in report.seeds]


if __name__ == "__main__":
    main()
