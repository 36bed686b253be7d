"""Training at speed: steps against a fine-tune's, two ranks against one, data against compute, boundary to first step.

    python -m benchmarks.training --data omniglot.parquet
    python -m benchmarks.training --only steps ranks

Everything that is compared is measured in turn in one run, round by round; the figures are medians of the rounds'
ratios. Parts that were not asked for keep their figures in the result file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from benchmarks.common import Report, common_arguments
from benchmarks.ingest.speed import measure_cache
from benchmarks.training.boundary import measure_boundary
from benchmarks.training.device_steps import measure_device_steps
from benchmarks.training.parts import measure_parts
from benchmarks.training.ranks import measure_ranks
from benchmarks.training.recalls import measure_recalls
from benchmarks.training.steps import measure_steps
from stream_odml.learn.memory import keep_freed_memory

PARTS = ("steps", "parts", "ranks", "cache", "boundary", "recall", "device")


def main() -> None:
    """Measure what was asked for and write training.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", type=Path, help="Parquet of real images for the recalls; without it, none")
    parser.add_argument("--device", default="cpu", help="accelerator of the part `device`, such as cuda")
    arguments = parser.parse_args()
    report = Report.begin("training", arguments)
    seed = arguments.seeds[0]
    keep_freed_memory()  # as the workers of a stream do
    parts: dict[str, Callable[[], None]] = {
        "steps": lambda: measure_steps(report, seed),
        "parts": lambda: measure_parts(report, seed),
        "ranks": lambda: measure_ranks(report, seed),
        "cache": lambda: measure_cache(report, seed),
        "boundary": lambda: measure_boundary(report, seed),
        "recall": lambda: measure_recalls(report, arguments.data, arguments.seeds),
        "device": lambda: measure_device_steps(report, arguments.device, seed),
    }
    for name in PARTS:
        if name in arguments.only:
            report.say(name)
            parts[name]()
    report.write(keep=True)


if __name__ == "__main__":
    main()
