"""Measured rows, appended one stage at a time: a study that is killed goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_KEY = ("run", "stage", "split", "gallery", "metric")
_WATCHED = (
    "stream_odml/learn",
    "stream_odml/zero.py",
    "stream_odml/config/gate.py",
    *(f"stream_odml/ingest/{name}.py" for name in ("decode", "sampler")),
    *(f"stream_odml/pipeline/{name}.py" for name in ("evaluating", "gate", "head_solving", "stage_learner")),
    *(
        f"benchmarks/quality/{name}.py"
        for name in (
            *(
                "data",
                "exact",
                "map_rivals",
                "map_run",
                "measure",
                "methods",
                "moving",
                "oracle",
                "protocols",
            ),
            *("pseudo_replay", "rival_run", "rivals", "scores", "study"),
        )
    ),
)
"""What a figure depends on, as far as it is ours."""


class RowFile:
    """JSON lines; of rows with one key the last counts, so a stage measured twice is not counted twice."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """In one write (several processes may share the file), on disk before this returns."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A line that a kill cut short must not swallow the next one: hence the newline in front.
        text = "\n" + "".join(json.dumps(row, sort_keys=True) + "\n" for row in rows)
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, text.encode())
            os.fsync(file)
        finally:
            os.close(file)

    def read(self) -> list[Row]:
        """Whole rows, in the order of their first appearance; a line that is none is passed over."""
        rows: dict[tuple[Any, ...], Row] = {}
        for row in self._lines():
            rows[tuple(row.get(name) for name in _KEY)] = row
        return list(rows.values())

    def stages(self) -> dict[str, set[int]]:
        """The measured stages of each run."""
        found: dict[str, set[int]] = {}
        for row in self._lines():
            if row["split"] == "union":
                found.setdefault(row["run"], set()).add(row["stage"])
        return found

    def finished(self) -> set[str]:
        """Runs whose every stage has been measured."""
        stages = self.stages()
        ends = {row["run"]: row["stage"] for row in self._lines() if row["metric"] == "train_s"}
        return {run for run, last in ends.items() if stages.get(run, set()) >= set(range(last + 1))}

    def _lines(self) -> Iterator[Row]:
        if not self.path.exists():
            return
        for line in self.path.read_text(errors="replace").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(row, dict) and row.keys() >= {*_KEY, "value"}:
                yield row


def learning_commit() -> str:
    """The last commit that touched what is learnt or measured; with `+` and a digest of it when edited since."""
    root = Path(__file__).resolve().parents[2]
    try:
        log = ["git", "-C", str(root), "log", "-1", "--format=%h", "--", *_WATCHED]
        commit = subprocess.run(log, capture_output=True, text=True, check=True).stdout.strip()
        status = ["git", "-C", str(root), "status", "--porcelain", "--", *_WATCHED]
        edited = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    if not edited:
        return commit
    digest = hashlib.sha256()
    for path in (root / name for name in _WATCHED):
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.read_bytes())
    return f"{commit}+{digest.hexdigest()[:7]}"
