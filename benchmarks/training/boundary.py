"""From a task's boundary to the first step on it, warm, with the workers on one node and on two."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np

from benchmarks.beside import beside
from benchmarks.common import Report
from benchmarks.ingest.live import scraped_histograms
from stream_odml.cluster.session import Session, run_stream
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.glyphs import GlyphCategory, glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store

CLASSES, IMAGES, STEPS = 20, 16, 40


def measure_boundary(report: Report, seed: int) -> None:
    """Seconds from hand-over to the end of the first step, of every stage but the first; the figure is the median."""
    for nodes in (1, 2):
        with tempfile.TemporaryDirectory() as folder, _cluster(nodes, Path(folder)) as address:
            report.say(f"boundary: {nodes} node(s)")
            waits, waiting = _in_a_process(_config(folder, seed, address), 3 if report.quick else 6)
        report.row(part="boundary", nodes=nodes, workers=2, boundary_to_first_step_s=waits, data_wait=waiting)
        more = "" if nodes == 1 else "_2_nodes"
        report.figure(f"boundary_to_first_step_s{more}", float(np.median(waits[1:])))
        report.figure(f"data_wait_fraction{more}", waiting)


def _in_a_process(config: StreamConfig, count: int) -> tuple[list[float], float]:
    """Ray reads its environment once a process: each cluster gets a process that begins with it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    worker = context.Process(target=_learn, args=(config.model_dump_json(), count, theirs))
    worker.start()
    theirs.close()
    try:
        found: tuple[list[float], float] = ours.recv()
    finally:
        worker.join()
    return found


def _learn(config_json: str, count: int, results: Connection) -> None:
    with run_stream(StreamConfig.model_validate_json(config_json)) as session:
        waits = _stages(session, count)
        spent = scraped_histograms(session.endpoints.metrics)
    results.send((waits, spent["data_wait_seconds_sum"] / spent["step_seconds_sum"]))


@contextlib.contextmanager
def _cluster(nodes: int, folder: Path) -> Iterator[str | None]:
    """The address of a cluster of two nodes of `ray start`, with its environment; None for a session of our own."""
    if nodes == 1:
        yield None
        return
    before = dict(os.environ)
    with beside("tests.cluster.two_nodes", str(folder / "nodes.log")) as cluster:
        os.environ.update(cluster["environment"])
        try:
            yield cluster["address"]
        finally:
            os.environ.clear()
            os.environ.update(before)


def _config(folder: str, seed: int, address: str | None) -> StreamConfig:
    return parse_config(
        {
            "name": "boundary",
            "root": f"{folder}/root",
            "seed": seed,
            "method": "distilled",  # every stage trains
            "model": {"dim": 64},
            "learning": {"base_steps": STEPS, "stage_steps": STEPS, "classes_per_batch": 12},
            "boundary": {"new_classes": None, "images": None, "age_s": None},
            "gate": {"enabled": False},
            # One worker fits a node: with two nodes there is one on each.
            "cluster": {"address": address, "workers": 2, "cpus_per_worker": 0.6, "serve": False},
            "metrics": {"port": 0},
        }
    )


def _stages(session: Session, count: int) -> list[float]:
    """Seconds to the first step of each stage; a task lands when the one before it has been learnt."""
    store, inbox = Store.open(session.config.root), inbox_path(session.config)
    categories = iter(glyph_categories(session.config.seed, images=IMAGES))
    waits = []
    for number in range(count):
        before = len(store.tree.versions)
        _land(categories, inbox, f"task-{number}")
        while len(store.tree.versions) == before:
            time.sleep(0.1)
            store.refresh()
        waits.append(float(store.tree.get(store.tree.head).metrics["boundary_to_first_step_s"]))
    return waits


def _land(categories: Iterator[GlyphCategory], inbox: str, name: str) -> None:
    items = [
        NewItem(image, category.class_name, f"{category.class_name}/{i}")
        for category in islice(categories, CLASSES)
        for i, image in enumerate(category.images)
    ]
    complete_task(inbox, name, [land_items(inbox, f"{name}-0", items)])
