"""Measured rows, appended one stage at a time: a study that is killed goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
_KEY = ("run", "stage", "split", "gallery", "metric")
_WATCHED = ("stream_odml/learn", "stream_odml/stream/sampler.py", "stream_odml/stream/decode.py")


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
        """Whole rows, in the order of their first appearance."""
        rows: dict[tuple[Any, ...], Row] = {}
        for row in self._lines():
            rows[tuple(row.get(name) for name in _KEY)] = row
        return list(rows.values())

    def finished(self) -> set[str]:
        """Runs whose last stage has been measured."""
        return {row["run"] for row in self._lines() if row["metric"] == "train_s"}

    def _lines(self) -> Iterator[Row]:
        if not self.path.exists():
            return
        for line in self.path.read_text().splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue


def learning_commit() -> str:
    """The last commit that touched what is learnt, `+` when it has been edited since."""
    root = Path(__file__).resolve().parents[2]
    try:
        log = ["git", "-C", str(root), "log", "-1", "--format=%h", "--", *_WATCHED]
        commit = subprocess.run(log, capture_output=True, text=True, check=True).stdout.strip()
        status = ["git", "-C", str(root), "status", "--porcelain", "--", *_WATCHED]
        edited = subprocess.run(status, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if edited else "")
