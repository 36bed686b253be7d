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

DIM, ROWS, CLASSES = 128, 100_000, 200
KILLS = {"folder": 30, "lancedb": 14, "qdrant": 6}
"""Of each kind of target, unless `LIMIT_S` is over before."""
LIMIT_S = 1500.0
_SYNC = """
import sys
from stream_odml.cli.main import main
sys.argv = ["stream-odml", "sync", sys.argv[1], "--to", sys.argv[2]]
main()
"""


def measure_sync(kind: str, report: Report, folder: Path, seed: int) -> None:
    """Sync to a target that needs no server until the process was killed so many times; a folder is read by a poller
    meanwhile."""
    rows, kills = (2_000, 3) if report.quick else (ROWS, KILLS[kind])
    config, mean = vector_stream(folder / "root", DIM), means(CLASSES * (2 * kills + 2), DIM, seed)
    open_root(config)
    labels = np.arange(rows) % CLASSES
    land_and_learn(config, "first", [f"class {c}" for c in labels], vectors(mean, labels, seed))
    target = folder / "target"
    place = str(target) if kind == "folder" else f"{kind}://{target}/items"
    began = time.monotonic()
    _run(config.root, place)
    whole_s = time.monotonic() - began
    reader = _Poller(target) if kind == "folder" else None
    chance, unequal, killed, number = random.Random(seed), 0, 0, 0
    while killed < kills and time.monotonic() < began + LIMIT_S:
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
        number += 1
        report.say(f"{kind}: {killed} kills in {number} runs, {unequal} unequal")
    mixed = reader.end() if reader else 0
    report.row(
        part=f"sync-{kind}",
        seed=seed,
        rows=rows,
        runs=number,
        kills=killed,
        unequal=unequal,
        mixed=mixed,
        whole_s=whole_s,
    )
    report.figure(f"sync_{kind}_rows", rows)
    report.figure(f"sync_{kind}_kills", killed)
    report.figure(f"sync_{kind}_unequal", unequal)
    report.figure(f"sync_{kind}_first_s", whole_s)
    if reader:
        report.figure("sync_answers", reader.answers)
        report.figure("sync_mixed_answers", mixed)


def sum_up(report: Report) -> None:
    """Note kills and unequal digests over all kinds of targets that a result file has, or this run measured."""
    file = report.out / f"{report.name}.json"
    figures = {**(json.loads(file.read_text())["figures"] if file.exists() else {}), **report.figures}
    for name in ("kills", "unequal"):
        found = [figures[f"sync_{kind}_{name}"] for kind in KILLS if f"sync_{kind}_{name}" in figures]
        if found:
            report.figure(f"sync_{name}", sum(found))


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
