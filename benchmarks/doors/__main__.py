"""Measure adoption, upgrades, synchronisation, export and canaries: `doors.json`.

    python -m benchmarks.doors                       # all parts, full size
    python -m benchmarks.doors --parts adopt --quick

Every part works in a folder of its own, on vectors that it makes up, but for `upgrade`, which needs real images.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

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


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.doors", description=__doc__)
    common_arguments(parser)
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    arguments = parser.parse_args()
    report = Report.begin("doors", arguments)
    for part in arguments.parts:
        for seed in arguments.seeds:
            with tempfile.TemporaryDirectory(prefix="stream-odml-doors-") as folder:
                report.say(f"part {part}, seed {seed}")
                PARTS[part](report, Path(folder), seed)
    sum_up(report)
    report.write(keep=True)


if __name__ == "__main__":
    main()
