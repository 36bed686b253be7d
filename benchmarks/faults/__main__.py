"""Run `python -m tests.faults` with the same arguments, and write what it measured as a result file.

`python -m benchmarks.faults --help` shows all of them; `--out` names the folder of the result file.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks.beside import measured_by
from benchmarks.common import RESULTS, Report


def main() -> None:
    """End with the exit code of the fault run, which is 1 when a promise was broken."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--out", type=Path, default=RESULTS)
    arguments, words = parser.parse_known_args()
    code, found = measured_by("tests.faults", [*words, "--results", str(arguments.out)])
    if found is not None:
        report = Report(found["name"], arguments.out, found["seeds"], found["quick"])
        report.figures, report.rows = found["figures"], found["rows"]
        report.write()
    sys.exit(code)


if __name__ == "__main__":
    main()
