"""How soon a class that lands is in the head that answers, while the trunk is being trained."""

from __future__ import annotations

import itertools
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np

from benchmarks.common import Report
from benchmarks.stream import Task, land_task
from stream_odml.cli.producer import Category
from stream_odml.cluster.session import Session, run_stream
from stream_odml.config.stream import parse_config
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store
from stream_odml.store.version_metrics import VersionMetrics

BASE_CLASSES, CLASSES, IMAGES = 20, 5, 20
LONG = 20_000
"""Steps of a stage that outlasts all tasks."""
WAIT_S = 600


def measure_running(report: Report, seed: int) -> None:
    """Land tasks one by one in a running stream whose trunk is in one long stage, and read from its versions how long
    after its closing each was learnt. ValueError where that stage ends before the last of them is."""
    count = 2 if report.quick else 24
    glyphs = glyph_categories(seed, images=IMAGES)
    sizes = [("base", BASE_CLASSES), *((f"task{n}", CLASSES) for n in range(1, count + 2))]
    base, first, *later = (
        Task(name, [Category(g.class_name, g.images) for g in itertools.islice(glyphs, size)])
        for name, size in sizes
    )
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        session = stack.enter_context(run_stream(parse_config(_config(folder, seed, report.quick))))
        store = Store.open(session.config.root)
        for task in (base, first):
            _learn(session, store, task)
        _until(lambda: _step(session) > 0, "the trunk's stage has not begun", session)
        for number, task in enumerate(later, 1):
            began = _step(session)
            _learn(session, store, task)
            version = store.tree.versions[store.tree.head or ""]
            waited = VersionMetrics.read(version.metrics).closed_to_learnt_s
            assert waited is not None
            if not (step := _step(session)) > began:
                raise ValueError(f"the trunk's stage stood still or ended before {task.name} was learnt")
            report.row(part="running", task=number, seconds=waited, step=step, load=os.getloadavg()[0])
    waits = [row["seconds"] for row in report.rows if row["part"] == "running"]
    report.figure("closed_to_learnt_s_p95", float(np.quantile(waits, 0.95)))


def _config(folder: str, seed: int, quick: bool) -> dict[str, Any]:
    return {
        "root": f"{folder}/root",
        "seed": seed,
        "model": {"backbone": "conv4", "dim": 64, "image_size": 28},
        "learning": {"base_steps": 20 if quick else 300, "stage_steps": LONG, "trunk": "distilled"},
        "boundary": {"new_classes": None, "images": None, "age_s": None},
        "evaluation": {"held_out": 0.2},
        "service": {"port": 0},
        "metrics": {"port": 0},
    }


def _step(session: Session) -> int:
    """Return at which step the trunk's stage is; 0 where none is trained."""
    stage = (session.look() or {}).get("stage", {})
    return int(stage.get("step", 0)) if stage.get("phase") == "training" else 0


def _learn(session: Session, store: Store, task: Task) -> None:
    before = len(store.tree.learnt())
    land_task(str(inbox_path(session.config)), task)

    def is_learnt() -> bool:
        store.refresh()
        return len(store.tree.learnt()) > before

    _until(is_learnt, f"{task.name} is not learnt", session)


def _until(done: Callable[[], bool], what: str, session: Session) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: {session.look()}")
        time.sleep(0.1)
