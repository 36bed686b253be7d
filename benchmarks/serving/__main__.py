"""The search service, measured.

    python -m benchmarks.serving
    python -m benchmarks.serving --only http layer

http: against a plain uvicorn with FAISS, by wrk; layer: our index against FAISS in process; swaps: queries over many
swaps with two replicas; training: queries beside a stage; hostile: a thousand requests that nobody should send.
"""

from __future__ import annotations

import argparse

from benchmarks.beside import add_measured
from benchmarks.common import Report, common_arguments
from benchmarks.serving.attacks import measure_attacks
from benchmarks.serving.swaps import measure_swaps
from benchmarks.serving.throughput import measure_http, measure_layer
from benchmarks.serving.training import measure_training


def measure_hostile(report: Report, seed: int) -> None:
    """Send a thousand requests that nobody should send."""
    add_measured(report, "tests.service.measure_hostile", seed)


PARTS = {
    "layer": measure_layer,
    "http": measure_http,
    "swaps": measure_swaps,
    "training": measure_training,
    "hostile": measure_hostile,
    "attacks": measure_attacks,
}
APART = ("attacks",)
"""Parts with a result file of their own."""


def main() -> None:
    """Measure and write `serving.json`, after each part."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", choices=PARTS, nargs="+", default=list(PARTS))
    common_arguments(parser)
    arguments = parser.parse_args()
    serving, apart = (Report.begin(name, arguments) for name in ("serving", "attacks"))
    for part in arguments.only:
        report = apart if part in APART else serving
        report.say(part)
        PARTS[part](report, report.seeds[0])
        report.write(keep=report is serving and len(arguments.only) < len(PARTS))


if __name__ == "__main__":
    main()
