"""What a test helper measures as a command of its own: figures and rows, which a benchmark's result file takes over.

Benchmarks import nothing of the tests: they run such a command and read the JSON file that `--measured` names.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console

T = TypeVar("T")


def measuring_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--measured`, `--seeds` (also `--seed`) and `--quick`."""
    parser.add_argument("--measured", type=Path, help="JSON file to write figures and rows to")
    parser.add_argument("--seeds", "--seed", type=int, nargs="+", default=[0], help="one run for each")
    parser.add_argument("--quick", action="store_true", help="a small run that shows that it works")


@dataclass
class Measured:
    """Figures by name, and the raw rows behind them."""

    name: str
    seeds: list[int]
    quick: bool
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    console: Console = field(default_factory=Console)
    _began: float = field(default_factory=time.monotonic)

    def figure(self, name: str, value: float | None) -> None:
        """Note and print a figure; leave out None and what is not finite, as it was not measured."""
        if value is None or not math.isfinite(value):
            return
        self.figures[name] = float(value)
        self.console.print(f"{name:44} {value:12.4g}", highlight=False)

    def row(self, **values: Any) -> None:
        """Add one raw measurement."""
        self.rows.append(values)

    def say(self, text: str) -> None:
        """Print a line of progress with the seconds since the beginning."""
        self.console.print(f"[dim]{time.monotonic() - self._began:7.1f} s[/] {text}", highlight=False)

    def track(self, things: Iterable[T], what: str, every_s: float = 5.0) -> Iterator[T]:
        """Pass `things` on and print now and then how many there were."""
        due = time.monotonic() + every_s
        for done, thing in enumerate(things):
            if time.monotonic() >= due:
                self.say(f"{what}: {done}")
                due = time.monotonic() + every_s
            yield thing

    def write(self, path: Path | None) -> None:
        """Write all but the console to `path`, if there is one."""
        if path is None:
            return
        kept = ("name", "seeds", "quick", "figures", "rows")
        path.write_text(json.dumps({name: getattr(self, name) for name in kept}, default=_plain))


def measure_each_seed(name: str, about: str | None, measure: Callable[[Measured, int], object]) -> None:
    """Run `measure` with each seed of the command line, and write what it noted."""
    parser = argparse.ArgumentParser(description=about)
    measuring_arguments(parser)
    arguments = parser.parse_args()
    report = Measured(name, arguments.seeds, arguments.quick)
    for seed in report.seeds:
        measure(report, seed)
    report.write(arguments.measured)


def percentile(values: Iterable[float], q: float) -> float | None:
    """Return the q-th percentile, or None of nothing."""
    seen = list(values)
    return float(np.percentile(seen, q)) if seen else None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
