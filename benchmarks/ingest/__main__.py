"""Ingestion, measured part by part; each part adds its figures to `ingest.json`.

python -m benchmarks.ingest                       # all parts, some forty minutes on two cores
python -m benchmarks.ingest --parts live speed    # these, keeping the figures of the others
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from benchmarks.beside import add_measured
from benchmarks.common import Report, common_arguments
from benchmarks.ingest import backlog, live, memory, sources, speed, throttled, whole_task


def measure_malformed(report: Report, seed: int) -> None:
    """Land rows and files that nobody should land."""
    add_measured(report, "tests.ingest.measure_malformed", seed)


PARTS: dict[str, Callable[[Report, int], None]] = {
    "malformed": measure_malformed,
    "poll": speed.measure_poll,
    "ledger": speed.measure_ledger,
    "speed": speed.measure_tier1,
    "cache": speed.measure_cache,
    "memory": memory.measure,
    "backlog": backlog.measure,
    "task": whole_task.measure,
    "live": live.measure,
    "sources": sources.measure,
    "throttled": throttled.measure,
}


def main() -> None:
    """Run the parts and write after each, so that a run that is cut short keeps what it measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    common_arguments(parser)
    arguments = parser.parse_args()
    report = Report.begin("ingest", arguments)
    for part in arguments.parts:
        report.say(part)
        for seed in report.seeds:
            PARTS[part](report, seed)
        report.write(keep=True)


if __name__ == "__main__":
    main()
