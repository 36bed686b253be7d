"""What every benchmark shares: its arguments, its result file, its progress and its table.

Protects: a result names the machine, the versions, the seeds and the commit that it was measured on, and a figure
that could not be measured is absent.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.table import Table

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PACKAGES = {
    "torch": "torch",
    "ray": "ray",
    "faiss": "faiss-cpu",
    "numpy": "numpy",
    "pyarrow": "pyarrow",
    "deltalake": "deltalake",
}
T = TypeVar("T")


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--out`, `--seeds` (also `--seed`) and `--quick`."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    parser.add_argument("--seeds", "--seed", type=int, nargs="+", default=[0], help="one run for each")
    parser.add_argument("--quick", action="store_true", help="a small run that shows that it works")


@dataclass
class Report:
    """The result of one benchmark: flat figures, and the raw rows behind them."""

    name: str
    out: Path
    seeds: list[int]
    quick: bool
    console: Console = field(default_factory=Console)
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    rows_as_parquet: bool = False
    """Write the rows to `<name>.parquet` and only its name into the JSON: a study has tens of thousands of them."""
    _began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(cls, name: str, arguments: argparse.Namespace) -> Report:
        """A report with the arguments of `common_arguments`."""
        return cls(name, arguments.out, list(arguments.seeds), arguments.quick)

    def figure(self, name: str, value: float | None) -> None:
        """Note a figure and say it; None or a value that is not finite was not measured, and is left out."""
        if value is None or not math.isfinite(value):
            return
        self.figures[name] = float(value)
        self.console.print(f"{name:44} {value:12.4g}", highlight=False)

    def row(self, **values: Any) -> None:
        """Add one raw measurement."""
        self.rows.append(values)

    def say(self, text: str) -> None:
        """A line of progress with the seconds since the beginning."""
        self.console.print(f"[dim]{time.monotonic() - self._began:7.1f} s[/] {text}", highlight=False)

    def track(self, things: Iterable[T], what: str, every_s: float = 5.0) -> Iterator[T]:
        """Pass `things` on and say now and then how many there were."""
        due = time.monotonic() + every_s
        for done, thing in enumerate(things):
            if time.monotonic() >= due:
                self.say(f"{what}: {done}")
                due = time.monotonic() + every_s
            yield thing

    def write(self, keep: bool = False) -> Path:
        """Write `<name>.json` and print the table. With `keep`, figures and rows of an earlier file that this run
        did not measure stay, so that long benchmarks can be run in parts."""
        path = self.out / f"{self.name}.json"
        body = self.as_dict()
        if keep and path.exists():
            body = _merged(json.loads(path.read_text()), body)
        self.out.mkdir(parents=True, exist_ok=True)
        if self.rows_as_parquet:
            body["rows"] = _write_parquet(path.with_suffix(".parquet"), body["rows"])
        aside = path.with_suffix(".aside")
        aside.write_text(_text(body))
        aside.replace(path)
        self.console.print(figure_table(self.name, body["figures"]))
        self.console.print(f"wrote {path}", highlight=False, soft_wrap=True)
        return path

    def as_dict(self) -> dict[str, Any]:
        """All of the result file; `parts` says of each part which run measured it, as others may be of older runs."""
        run = {
            "command": _command(),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "git": git_commit(),
        }
        parts = sorted({str(row["part"]) for row in self.rows if "part" in row})
        return {
            "benchmark": self.name,
            **run,
            "machine": machine(),
            "versions": versions(),
            "seeds": self.seeds,
            "quick": self.quick,
            **({"parts": dict.fromkeys(parts, run)} if parts else {}),
            "figures": self.figures,
            "rows": self.rows,
        }


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    measured = {row.get("part") for row in new["rows"]}
    rows = [row for row in old["rows"] if row.get("part") not in measured]
    return {
        **new,
        "parts": {**old.get("parts", {}), **new.get("parts", {})},
        "figures": {**old["figures"], **new["figures"]},
        "rows": [*rows, *new["rows"]],
    }


def figure_table(title: str, figures: Mapping[str, float]) -> Table:
    """Figures by name."""
    table = Table("figure", "value", title=title, title_justify="left")
    for name, value in figures.items():
        table.add_row(name, f"{value:.4g}")
    return table


def machine() -> dict[str, Any]:
    """Processor, cores that this process may use, memory, and the accelerator if there is one."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory / 2**30, 1),
        "gpu": _gpu(),
    }


def versions() -> dict[str, str]:
    """Python and the packages whose speed is in the figures."""
    found = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str:
    """The commit that was measured, with `+` when files of the package differ from it; empty outside of git."""
    try:
        commit = _git("rev-parse", "--short=12", "HEAD")
        changed = _git(
            "status", "--porcelain", "--untracked-files=no", "--", "stream_odml", "benchmarks/*.py"
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return commit + ("+" if changed else "")


def percentile(values: Iterable[float], q: float) -> float | None:
    """The q-th percentile, or None of nothing."""
    import numpy as np

    seen = list(values)
    return float(np.percentile(seen, q)) if seen else None


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=HERE.parent, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def _gpu() -> str | None:
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name(0) if torch is not None and torch.cuda.is_available() else None


def _command() -> str:
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    module = spec.name.removesuffix(".__main__") if spec is not None else Path(sys.argv[0]).name
    # Files by their names: where we keep them says nothing to another.
    words = [Path(word).name if word.startswith("/") else word for word in sys.argv[1:]]
    return shlex.join(["python", "-m", module, *words])


def read_rows(result: Path) -> list[dict[str, Any]]:
    """Return the rows of a result file, from the Parquet file beside it if that is where they are."""
    rows = json.loads(result.read_text())["rows"]
    if isinstance(rows, str):
        import pyarrow.parquet as pq

        rows = pq.read_table(result.parent / rows).to_pylist()
    found: list[dict[str, Any]] = rows
    return found


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> str:
    import pyarrow as pa
    import pyarrow.parquet as pq

    aside = path.with_suffix(".aside")
    pq.write_table(pa.Table.from_pylist(rows), aside, compression="zstd")
    aside.replace(path)
    return path.name


def _text(body: dict[str, Any]) -> str:
    """Return JSON with a line for each row."""
    if isinstance(body["rows"], str):
        return json.dumps(body, indent=1, default=_plain) + "\n"
    rows = ",\n  ".join(json.dumps(row, default=_plain) for row in body["rows"])
    head = json.dumps({**body, "rows": []}, indent=1, default=_plain).removesuffix("[]\n}")
    return f"{head}[\n  {rows}\n ]\n}}\n"


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else str(value)
