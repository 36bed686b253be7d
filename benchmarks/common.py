"""What every benchmark shares: its arguments, and the JSON file that says where and how a figure was measured."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
PACKAGES = {"torch": "torch", "ray": "ray", "faiss": "faiss-cpu", "deltalake": "deltalake", "numpy": "numpy"}


def common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add ``--out``, ``--seed`` / ``--seeds`` and ``--quick``."""
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the JSON file")
    parser.add_argument("--seed", type=int, help="one seed")
    parser.add_argument("--seeds", default="0", help="several, as in 0,1,2")
    parser.add_argument(
        "--quick", action="store_true", help="a small dose that ends in minutes; marked as such"
    )


@dataclass
class Report:
    """One result file. Add to ``figures`` and ``rows``, then `write`; writing again replaces the file."""

    name: str
    folder: Path
    quick: bool
    seeds: list[int]
    figures: dict[str, float] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    began: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def begin(cls, name: str, arguments: argparse.Namespace) -> Report:
        """A report for arguments that `common_arguments` defined."""
        seeds = (
            [arguments.seed] if arguments.seed is not None else [int(s) for s in arguments.seeds.split(",")]
        )
        return cls(name, Path(arguments.out), bool(arguments.quick), seeds)

    def write(self) -> Path:
        """Write `<name>.json` and return its path. A figure that is not finite raises ValueError: leave it out."""
        body = {
            "benchmark": self.name,
            "command": command_line(),
            "date": self.began,
            "git": git_commit(),
            "machine": machine(),
            "versions": versions(),
            "seeds": self.seeds,
            "quick": self.quick,
            "figures": self.figures,
            "rows": self.rows,
        }
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}.json"
        path.write_text(json.dumps(body, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path

    def print_figures(self) -> None:
        """The figures as a table on the terminal."""
        width = max(map(len, self.figures), default=0)
        for name, value in self.figures.items():
            print(f"{name:{width}}  {value:.6g}")


def command_line() -> str:
    """The command as another person would type it: paths outside the checkout by their last part."""
    spec = sys.modules["__main__"].__spec__
    words = [Path(a).name if a.startswith("/") else a for a in sys.argv[1:]]
    return " ".join(
        ["python", "-m", spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).name, *words]
    )


def git_commit() -> str:
    """The commit of the code that runs, with `+` when the tree has other changes than results."""
    here = Path(__file__).parent
    try:
        commit = _git(here, "rev-parse", "--short", "HEAD")
        changed = _git(here, "status", "--porcelain", "--untracked-files=no", "--", "..", ":!results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changed else "")


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def machine() -> dict[str, Any]:
    """Processor, cores, memory, accelerator."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else None
    return {"cpu": _cpu(), "cores": os.cpu_count(), "memory_gib": round(memory, 1), "gpu": gpu}


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")


def versions() -> dict[str, str]:
    """Of Python and of the libraries that figures depend on."""
    found = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
