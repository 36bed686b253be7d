"""Synchronisation under kills: the syncing process is killed at random moments while the gallery changes, a reader
polls, and digests made of what the target gives back must be equal after each next run."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import Report
from benchmarks.doors.made import land_and_learn, means, vector_stream, vectors
from stream_odml.exchange.syncing import open_target, sync
from stream_odml.pipeline.first_version import open_root
from stream_odml.store.sums import forget_in_sums
from stream_odml.store.writer import Writer

DIM, ROWS, CLASSES, KILLS = 128, 100_000, 200, 50
KINDS = ("folder", "lancedb", "qdrant")
_SYNC = """
import sys
from stream_odml.cli.main import main
sys.argv = ["stream-odml", "sync", sys.argv[1], "--to", sys.argv[2]]
main()
"""


def measure_sync(report: Report, folder: Path, seed: int) -> None:
    """Sync to every kind of target that needs no server, with kills; a folder is read by a poller meanwhile."""
    rows, kills = (2_000, 3) if report.quick else (ROWS, KILLS)
    for kind in KINDS[:1] if report.quick else KINDS:
        _of_kind(report, folder / kind, kind, rows, kills, seed)


def _of_kind(report: Report, folder: Path, kind: str, rows: int, kills: int, seed: int) -> None:
    folder.mkdir()
    config, mean = vector_stream(folder / "root", DIM), means(CLASSES * (kills + 2), DIM, seed)
    open_root(config)
    labels = np.arange(rows) % CLASSES
    land_and_learn(config, "first", [f"class {c}" for c in labels], vectors(mean, labels, seed))
    target = folder / "target"
    place = str(target) if kind == "folder" else f"{kind}://{target}/items"
    began = time.monotonic()
    _run(config.root, place)
    whole_s = time.monotonic() - began
    reader = _Poller(target) if kind == "folder" else None
    chance, unequal, killed = random.Random(seed), 0, 0
    for number in range(kills):
        _change(report, config.root, config, mean, number)
        process = subprocess.Popen(
            [sys.executable, "-c", _SYNC, config.root, place], stdout=subprocess.DEVNULL
        )
        try:
            process.wait(chance.uniform(0.1, 1.2) * whole_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
        opened = open_target(place)
        unequal += not sync(config.root, opened, verify=True).equal
        opened.close()
    mixed = reader.end() if reader else 0
    report.row(
        part="sync",
        seed=seed,
        kind=kind,
        rows=rows,
        kills=killed,
        unequal=unequal,
        mixed=mixed,
        whole_s=whole_s,
    )
    report.figure(f"sync/{kind}/rows", rows)
    report.figure(f"sync/{kind}/kills", killed)
    report.figure(f"sync/{kind}/unequal", unequal)
    report.figure(f"sync/{kind}/first_s", whole_s)
    if reader:
        report.figure(f"sync/{kind}/answers", reader.answers)
        report.figure(f"sync/{kind}/mixed_answers", mixed)


def _run(root: str, place: str) -> None:
    subprocess.run([sys.executable, "-c", _SYNC, root, place], check=True, stdout=subprocess.DEVNULL)


def _change(report: Report, root: str, config: object, mean: np.ndarray, number: int) -> None:
    """Learn a new task (another space), or erase an item (other rows), in turn."""
    from stream_odml.config.stream import StreamConfig

    assert isinstance(config, StreamConfig)
    if number % 2 == 0:
        labels = np.repeat(np.arange(CLASSES + 5 * number, CLASSES + 5 * number + 5), 8)
        names = [f"class {label}" for label in labels]
        land_and_learn(config, f"task-{number}", names, vectors(mean, labels, number))
        return
    writer = Writer.claim(root, "benchmark", takeover=True)
    writer.forget("item", f"first/{number}", 1)
    forget_in_sums(writer)
    writer.release()


class _Poller:
    """Reads what `current.json` names, over and over; an answer of two versions is one too many."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._ended = folder, threading.Event()
        self.answers = self._mixed = 0
        self._thread = threading.Thread(target=self._poll, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Stop; how many answers were of several versions."""
        self._ended.set()
        self._thread.join()
        return self._mixed

    def _poll(self) -> None:
        while not self._ended.wait(0.05):
            try:
                space = json.loads((self._folder / "current.json").read_bytes())["space"]
                files = list((self._folder / f"space-{space}").glob("*.parquet"))
                found = {
                    v
                    for f in files
                    for v in pq.read_table(f, columns=["version"])["version"].unique().to_pylist()
                }
                now = json.loads((self._folder / "current.json").read_bytes())["space"]
            except FileNotFoundError:  # switched while it was read
                continue
            if now == space:
                self.answers += 1
                self._mixed += len(found) > 1
