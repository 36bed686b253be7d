"""Ingestion, measured part by part; each part adds its figures to `ingest.json`.

python -m benchmarks.ingest                       # all parts, some forty minutes on two cores
python -m benchmarks.ingest --parts live speed    # these, keeping the figures of the others
python -m benchmarks.ingest --parts kafka --messages 20000 --kills 6   # a smaller campaign on a topic
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from benchmarks.beside import add_measured
from benchmarks.common import Report, common_arguments
from benchmarks.ingest import backlog, live, memory, sources, speed, throttled, topics, whole_task


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
    "kafka": topics.measure,
}


def main() -> None:
    """Run the parts and write after each, so that a run that is cut short keeps what it measured."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--messages", type=int, default=topics.MESSAGES, help="messages of part kafka")
    parser.add_argument("--kills", type=int, default=topics.KILLS, help="SIGKILLs of part kafka")
    common_arguments(parser)
    arguments = parser.parse_args()
    campaign = partial(topics.measure, messages=arguments.messages, kills=arguments.kills)
    parts: dict[str, Callable[[Report, int], None]] = {**PARTS, "kafka": campaign}
    report = Report.begin("ingest", arguments)
    for part in arguments.parts:
        report.say(part)
        for seed in report.seeds:
            parts[part](report, seed)
        report.write(keep=True)


if __name__ == "__main__":
    main()
