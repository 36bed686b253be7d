"""Ten stages learnt and a thousand swaps of the served snapshot in one process: memory stays where it was.

A swap here is a move of the head between the newest two versions, which loads another model, maps the gallery into its
space and builds the searcher again, as after a commit; the stream itself does not grow by it. The writer has a process
of its own, as in a stream, tidies its tables as the driver does, and is weighed too.
"""

from __future__ import annotations

import gc
import multiprocessing
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import build_embedder
from stream_odml.learn.memory import give_back_memory
from stream_odml.search.search import SearchSettings
from stream_odml.service.metrics import ServiceMetrics
from stream_odml.service.puller import Puller
from stream_odml.store.store import Store
from tests.learn import tiny
from tests.measured import Measured
from tests.service.tiny_stream import TinyStream

STAGES, SWAPS = 10, 100
"""Swaps of each stage."""
WARM = 3
"""Stages after which libraries have taken what they keep."""
TIDY_EVERY = 2
"""Stages: some 300 commits, of the thousand or so after which a driver does it."""


def run(report: Measured) -> int:
    """A row for each stage and the slopes; 0, for a slope is a figure and no promise."""
    pa.set_memory_pool(pa.system_memory_pool())  # as a replica does
    old, bank = build_embedder(tiny.SPEC, 0), ClassBank.empty(tiny.SPEC.dim)
    ours: list[float] = []
    writers: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        link, theirs = multiprocessing.Pipe()
        writer = multiprocessing.get_context("spawn").Process(target=_write, args=(folder, theirs))
        writer.start()
        root = _asked(link, "root")
        puller = Puller(lambda: Store.open(root), SearchSettings(), 60.0, ServiceMetrics())
        puller.poll()
        for stage in range(STAGES):
            outcome = tiny.learn(stage, old, bank)
            old, bank = outcome.student, outcome.bank
            _swap(link, puller, stage)
            writers.append(_asked(link, "weigh"))
            ours.append(weighed())
            both = {"rss_mb": round(ours[-1], 1), "writer_rss_mb": round(writers[-1], 1)}
            report.row(part="memory", stage=stage, swaps=puller.swaps, **both)
            report.say(f"stage {stage}: {puller.swaps} swaps, {both}")
        link.send("end")
        writer.join(timeout=30)
    report.figure("memory_swaps", float(puller.swaps))
    report.figure("memory_stages", float(STAGES))
    report.figure("memory_slope_mb_per_stage_and_100_swaps", _slope(ours))
    report.figure("memory_writer_slope_mb_per_stage_and_100_moves", _slope(writers))
    return 0


def _slope(seen: list[float]) -> float:
    return float(np.polyfit(range(len(seen) - WARM), seen[WARM:], 1)[0])


def _swap(link: Connection, puller: Puller, stage: int) -> None:
    _asked(link, f"stage {stage}")
    puller.poll()
    for number in range(SWAPS - 1):
        _asked(link, "older" if number % 2 == 0 else "newest")
        if not puller.poll():
            raise AssertionError("a move of the head was not seen")


def _asked(link: Connection, what: str) -> Any:
    link.send(what)
    return link.recv()


def _write(folder: str, link: Connection) -> None:
    """The writer's side: does what it is told, one word at a time."""
    stream = TinyStream(Path(folder))
    stream.land("first", ["a", "b"])
    older = newest = stream.head
    while (what := link.recv()) != "end":
        answer: Any = None
        if what == "root":
            answer = stream.root
        elif what == "weigh":
            answer = weighed()
        elif what in ("older", "newest"):
            stream.back_to(older if what == "older" else newest)
        else:
            number = int(what.split()[1])
            if stream.head != newest:
                stream.back_to(newest)
            stream.land(f"shard-{number}", [f"c{number}", f"d{number}"])
            older, newest = newest, stream.stage()
            if number % TIDY_EVERY == 0:
                stream.writer.maintain()
        link.send(answer)
    stream.close()


def weighed() -> float:
    """Resident memory of this process in MiB, without what nothing holds any more."""
    gc.collect()
    give_back_memory()
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024
