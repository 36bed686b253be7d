"""How far it goes: 10^5 classes, 10^9 vectors, 100 nodes, from laws fitted on small runs and checked on larger ones.

    python -m benchmarks.scale

Every law is a sum of terms in the sizes; its factors are fitted on the smallest points, and its error is that at the
largest measured one (of this run, or of another benchmark's full run in benchmarks/results). The rows of part `wall`
say in words which limit is met first and what to do. What was measured on one machine says nothing of a network's
latency or of an object store: the laws of time are those of this machine's cores and disk.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import torch
from rich.table import Table

from benchmarks.common import Report, common_arguments
from benchmarks.scale import measured
from benchmarks.scale.laws import Law
from benchmarks.scale.walls import in_order


def main() -> None:
    """Measure, fit, check, extrapolate, write scale.json."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    common_arguments(parser)
    report = Report.begin("scale", parser.parse_args())
    torch.set_num_threads(1)
    laws = list(measured.gallery_laws(report, report.seeds[0]))
    single: tuple[Callable[[Report, int], Law], ...] = (
        measured.bank_law,
        measured.exchange_law,
        measured.poll_law,
        measured.replay_law,
        measured.compose_law,
        measured.commit_law,
    )
    for measure in single:
        report.say(measure.__name__)
        laws.append(measure(report, report.seeds[0]))
    _check(report, laws)
    walls = in_order(laws)
    report.rows += walls
    report.figure("first_wall_vectors", float(str(walls[0]["reached_at_vectors"])))
    report.console.print(_table(walls))
    report.write()


def _check(report: Report, laws: list[Law]) -> None:
    worst = 0.0
    for law in laws:
        for sizes, value, check in law.points:
            report.row(part="point", law=law.name, sizes=dict(sizes), measured=value, checks=check)
        for sizes, value, said, error in law.errors():
            report.row(part="check", law=law.name, sizes=dict(sizes), measured=value, model=said, error=error)
            report.figure(f"model_error_{law.name}", error)
            worst = max(worst, error)
    report.figure("model_error_relative_max", worst)


def _table(walls: list[dict[str, object]]) -> Table:
    table = Table("what", "limit", "at the target", "reached at vectors", "what to do")
    for wall in walls:
        numbers = [f"{float(str(wall[k])):.3g}" for k in ("limit", "at_target", "reached_at_vectors")]
        table.add_row(f"{wall['what']}", *numbers, str(wall["remedy"]))
    return table


if __name__ == "__main__":
    main()
