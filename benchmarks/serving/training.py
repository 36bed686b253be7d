"""Queries beside training on the same cores: what training does to p99, and what queries do to training."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.common import Report, percentile
from benchmarks.serving.asking import Asker
from benchmarks.serving.roots import request_body
from stream_odml.cluster.session import run_stream
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.glyphs import GlyphCategory, glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store

RATE, CONNECTIONS = 50.0, 8
CLASSES, IMAGES = 20, 16
DIM, IDLE_S = 64, 15.0


def measure_training(report: Report, seed: int) -> None:
    """p99 at 50 queries/s idle and while a stage is learnt; steps per second of stages with and without queries."""
    import numpy as np

    categories = iter(glyph_categories(seed))
    steps = 20 if report.quick else 150
    body = request_body(np.random.default_rng(seed).standard_normal(DIM).astype(np.float32), 10)
    with tempfile.TemporaryDirectory() as folder, run_stream(_config(folder, seed, steps)) as session:
        store, inbox = Store.open(session.config.root), inbox_path(session.config)

        def learn(name: str) -> float:
            before = len(store.tree.versions)
            _land(categories, inbox, name)
            while len(store.tree.versions) == before:
                time.sleep(0.2)
                store.refresh()
            metrics = store.tree.get(store.tree.head).metrics
            return float(metrics["steps"]) / float(metrics["seconds"])

        learn("first")
        quiet = [learn("quiet")]
        _asked(
            session.endpoints.service, body, lambda: time.sleep(2)
        )  # what is first is neither idle nor busy
        idle = _asked(session.endpoints.service, body, lambda: time.sleep(IDLE_S))
        busy_speed: list[float] = []
        busy = _asked(session.endpoints.service, body, lambda: busy_speed.append(learn("asked")))
        quiet.append(learn("quiet-again"))
    idle_p99, busy_p99 = percentile(idle, 99), percentile(busy, 99)
    assert idle_p99 is not None
    assert busy_p99 is not None
    report.row(part="training", idle_p99_ms=idle_p99, busy_p99_ms=busy_p99, quiet=quiet, asked=busy_speed)
    report.figure("p99_idle_ms", idle_p99)
    report.figure("p99_training_ms", busy_p99)
    report.figure("p99_training_over_idle", busy_p99 / idle_p99)
    report.figure("training_speed_beside_queries", busy_speed[0] / (sum(quiet) / len(quiet)))


def _asked(url: str, body: bytes, meanwhile: Callable[[], object]) -> list[float]:
    with Asker(url, [body], CONNECTIONS, RATE) as asker:
        meanwhile()
    assert all(one.status == 200 for one in asker.seen), "a query failed"
    return [one.seconds * 1e3 for one in asker.seen]


def _land(categories: Iterator[GlyphCategory], inbox: str, name: str) -> None:
    items = []
    for _ in range(CLASSES):
        category = next(categories)
        name_of = category.class_name
        items += [
            NewItem(image, name_of, f"{name_of}/{i}") for i, image in enumerate(category.images[:IMAGES])
        ]
    complete_task(inbox, name, [land_items(inbox, f"{name}-0", items)])


def _config(folder: str, seed: int, steps: int) -> StreamConfig:
    return parse_config(
        {
            "name": "benchmark",
            "root": str(Path(folder) / "root"),
            "seed": seed,
            "method": "distilled",  # every stage trains
            "model": {"backbone": "conv4", "dim": DIM, "image_size": 32},
            "learning": {
                "base_steps": steps,
                "stage_steps": steps,
                "classes_per_batch": 12,
                "images_per_class": 4,
            },
            "boundary": {"new_classes": None, "images": None, "age_s": None},
            "gate": {"enabled": False},
            "service": {"port": 0},
            "metrics": {"port": 0},
        }
    )
