"""Ten stages learnt and a thousand swaps of the served snapshot in one process: memory stays where it was.

A swap here is a move of the head between the newest two versions, which loads another model, maps the gallery into its
space and builds the searcher again, as after a commit; the stream itself does not grow by it.
"""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import Report
from stream_odml.cluster.serving.metrics import ServiceMetrics
from stream_odml.cluster.serving.puller import Puller
from stream_odml.gallery.search import SearchSettings
from stream_odml.gallery.store import Store
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import build_embedder
from tests.cluster.serving.tiny_stream import TinyStream
from tests.learn import tiny

STAGES, SWAPS = 10, 100
"""Swaps of each stage."""
WARM = 3
"""Stages after which libraries have taken what they keep."""


def run(report: Report) -> int:
    """A row for each stage and the slopes; 0, for a slope is a figure and no promise."""
    old, bank = build_embedder(tiny.SPEC, 0), ClassBank.empty(tiny.SPEC.dim)
    seen: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        stream = TinyStream(Path(folder))
        stream.land("first", ["a", "b"])
        puller = Puller(lambda: Store.open(stream.root), SearchSettings(), 60.0, ServiceMetrics())
        puller.poll()
        for stage in range(STAGES):
            outcome = tiny.learn(stage, old, bank)
            old, bank = outcome.student, outcome.bank
            stream.land(f"shard-{stage}", [f"c{stage}", f"d{stage}"])
            _swap(stream, puller)
            gc.collect()
            seen.append(rss_mb())
            report.row(part="memory", stage=stage, swaps=puller.swaps, rss_mb=round(seen[-1], 1))
            report.say(f"stage {stage}: {puller.swaps} swaps, {seen[-1]:.1f} MB")
        stream.close()
    slope = float(np.polyfit(range(len(seen) - WARM), seen[WARM:], 1)[0])
    report.figure("memory_swaps", float(puller.swaps))
    report.figure("memory_stages", float(STAGES))
    report.figure("memory_slope_mb_per_stage_and_100_swaps", slope)
    return 0


def _swap(stream: TinyStream, puller: Puller) -> None:
    before = stream.head
    newest: Any = stream.stage()
    puller.poll()
    for number in range(SWAPS - 1):
        stream.back_to(before if number % 2 == 0 else newest)
        if not puller.poll():
            raise AssertionError("a move of the head was not seen")
    if stream.head != newest:
        stream.back_to(newest)


def rss_mb() -> float:
    """Resident memory of this process."""
    line = next(
        line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")
    )
    return int(line.split()[1]) / 1024
