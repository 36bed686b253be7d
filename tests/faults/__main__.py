"""Faults of every kind, on purpose, against a real stream, with an oracle of what was confirmed.

    python -m benchmarks.faults --kills 150 --seed 1 --minutes 10 --again 0.4  # all roles, several in flight
    python -m benchmarks.faults --alone --quiet-machine --name alone        # one at a time: times to heal
    python -m benchmarks.faults --only replica --quiet-machine --minutes 10 --name replicas  # availability
    python -m benchmarks.faults --parts crash resume --name steps           # crash points; mid-stage progress
    python -m benchmarks.faults --parts environment --name environment      # frozen, full, read-only, slow, clock
    python -m benchmarks.faults --parts memory --name memory                # ten stages, a thousand swaps
    python -m benchmarks.faults --parts elastic cut --name nodes            # two nodes; needs root
    python -m benchmarks.faults --parts soak                                # an hour of pushes: faults-soak.json
    python -m benchmarks.faults --parts commits --name commits              # 100,000 commits to the ledger
    python -m benchmarks.faults --parts neighbours --minutes 10             # two streams: faults-neighbours.json
    python -m benchmarks.faults --sum                                       # faults.json out of faults-*.json

A failure prints the seed and the number of the kill; the exit code is then 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from pathlib import Path

from tests.faults import commits, elastic, environment, memory, neighbours, resume, soak
from tests.faults.campaign import Plan, run
from tests.faults.figures import figures
from tests.faults.nodes import have_namespaces
from tests.measured import Measured, measuring_arguments
from tests.store.crash_walk import POINTS, walk

PARTS = (
    "kills",
    "crash",
    "resume",
    "environment",
    "elastic",
    "cut",
    "memory",
    "soak",
    "commits",
    "neighbours",
)
ALONE = {"soak", "commits", "neighbours"}
"""Parts that `--quick` shortens instead of choosing others."""
QUICK = {"kills": 12, "minutes": 15.0, "apart": 1}
KILL_MINUTES, SOAK_MINUTES = 7.0, 60.0


def arguments_of(words: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=["kills"], help="what to do, in this order"
    )
    parser.add_argument("--kills", type=int, default=100, help="most kills of a seed, the whole tree apart")
    parser.add_argument("--minutes", type=float, help="longest time of killing (7), or of the soak (60)")
    parser.add_argument("--only", nargs="+", default=[], help="roles of killer.py, faults of environment.py")
    parser.add_argument("--alone", action="store_true", help="never two kills in flight")
    parser.add_argument(
        "--again", type=float, default=0.0, help="share of kills whose successor is killed on its way, too"
    )
    parser.add_argument(
        "--apart", type=int, default=0, help="whole-tree kills (tree, raylet, gcs) at the end"
    )
    parser.add_argument(
        "--pause", type=float, nargs=2, default=[0.3, 2.0], help="seconds between two of a slot"
    )
    parser.add_argument(
        "--hold", type=float, default=6.0, help="seconds that a fault of the environment lasts"
    )
    parser.add_argument(
        "--quiet-machine", action="store_true", help="nothing else runs here: only such runs count for times"
    )
    parser.add_argument("--rate", type=float, default=5.0, help="questions a second of the client")
    parser.add_argument("--name", default="", help="of the result file, faults-<name>.json")
    parser.add_argument("--sum", action="store_true", help="only add up the result files that there are")
    parser.add_argument("--results", type=Path, default=Path(), help="folder of the result files to add up")
    measuring_arguments(parser)
    arguments = parser.parse_args(words)
    if arguments.quick:
        if not ALONE.issuperset(arguments.parts):
            arguments.parts = ["kills", "crash"]
        for name, value in QUICK.items():
            setattr(arguments, name, value)
    if arguments.minutes is None:
        arguments.minutes = SOAK_MINUTES if arguments.parts == ["soak"] else KILL_MINUTES
    if arguments.parts in (["soak"], ["neighbours"]):
        arguments.name = arguments.name or arguments.parts[0]
    return arguments


def main() -> None:
    """Do what the arguments say; the result is `faults-<name>`."""
    arguments = arguments_of()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the stream's processes end with us
    if arguments.sum:
        add_up(arguments)
        return
    name = arguments.name or "-".join(map(str, arguments.seeds))
    report = Measured(f"faults-{name}", arguments.seeds, arguments.quick)
    broken = sum(do(part, report, arguments) for part in arguments.parts)
    if arguments.parts != ["neighbours"]:  # its rows are of two streams, with figures of their own
        for figure, value in figures(report.rows).items():
            report.figure(figure, value)
    report.write(arguments.measured)
    sys.exit(1 if broken else 0)


def do(part: str, report: Measured, arguments: argparse.Namespace) -> int:
    """One part; how many promises were broken."""
    if part in ("elastic", "cut") and not have_namespaces():
        report.say(f"NOT CHECKED: {part}: needs root and iproute2")
        return 0
    if part == "crash":
        return crash(report)
    if part == "resume":
        row = resume.compare()
        report.row(**row)
        report.say(f"resume: {row}")
        return int(not row["identical"])
    if part == "soak":
        return soak.run(report, arguments.minutes, arguments.quick)
    if part == "neighbours":
        return sum(neighbours.run(report, seed, plan_of(arguments)) for seed in report.seeds)
    if part == "commits":
        return commits.run(report, commits.QUICK_COMMITS if arguments.quick else commits.COMMITS)
    if part == "memory":
        return memory.run(report)
    if part == "environment":
        seeds = report.seeds
        return sum(environment.run(report, seed, list(arguments.only), arguments.hold) for seed in seeds)
    if part in ("elastic", "cut"):
        return (elastic.run if part == "elastic" else elastic.run_cut)(report, report.seeds[0])
    return sum(len(run(report, seed, plan_of(arguments))) for seed in report.seeds)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """How much of what."""
    return Plan(
        arguments.kills,
        arguments.minutes,
        frozenset(arguments.only),
        arguments.alone,
        arguments.apart,
        (arguments.pause[0], arguments.pause[1]),
        arguments.rate,
        arguments.again,
        arguments.quiet_machine,
    )


def crash(report: Measured) -> int:
    """Every named point of the store, killed there twice."""
    failed = 0
    for point, why in report.track(walk(), "crash points"):
        failed += bool(why)
        report.row(part="crash", point=point, failed=why)
    report.say(f"{len(POINTS)} crash points, {failed} failed")
    return failed


def add_up(arguments: argparse.Namespace) -> None:
    """`faults.json`: the rows of all `faults-*.json`, and the figures of them together."""
    report = Measured("faults", [], arguments.quick)
    for path in sorted(arguments.results.glob("faults-*.json")):
        body = json.loads(path.read_text())
        report.rows += [{"file": path.stem, "git": body["git"], **row} for row in body["rows"]]
        report.figures |= {
            n: v for n, v in body["figures"].items() if n.startswith(("elastic_", "cut_", "memory_"))
        }
        report.seeds += [seed for seed in body["seeds"] if seed not in report.seeds]
    for figure, value in figures(report.rows).items():
        report.figure(figure, value)
    report.write(arguments.measured)


if __name__ == "__main__":
    main()
