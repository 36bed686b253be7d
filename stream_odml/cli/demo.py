"""The demo: a whole stream on this machine, with a producer, a client that never stops asking, and a verdict."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from stream_odml.cli.baselines import Baseline, measure_baselines
from stream_odml.cli.console import StreamView, say, waiting
from stream_odml.cli.demo_table import HELD_OUT, demo_table, reading, summary
from stream_odml.cli.producer import Category, LandedShard, Producer, categories_of
from stream_odml.cli.versions_table import stage_rows
from stream_odml.client import Client, ClientError
from stream_odml.cluster.session import Session, run_stream
from stream_odml.config.masking import masked_text
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store
from stream_odml.store.unlearnt import unlearnt_tasks

SHARD_CATEGORIES = 5
BASE_CATEGORIES = 30
"""Characters that the stream begins with, which train the trunk."""
TASK_CATEGORIES = 15
IMAGES = 40
LAND_EVERY_S = 1.5
ASK_EVERY_S = 0.1
AHEAD = (BASE_CATEGORIES + TASK_CATEGORIES) // SHARD_CATEGORIES
"""Shards that may wait unlearnt before the producer pauses: the stream is endless, the machine is not."""

DURATIONS = {
    "landed_to_searchable_s": "landed to searchable",
    "commit_to_served_s": "commit to served",
    "closed_to_learnt_s": "task closed to learnt, by its head",
}
"""Of `Measured`, and what they are called."""


@dataclass
class Measured:
    """What the demo's own client saw. Durations in seconds."""

    ok: int = 0
    failed: int = 0
    failures: list[str] = field(default_factory=list)
    landed_to_searchable_s: list[float] = field(default_factory=list)
    commit_to_served_s: list[float] = field(default_factory=list)
    closed_to_learnt_s: list[float] = field(default_factory=list)
    """Of tasks for which a head was solved, from when a task was closed until its version was committed."""
    wall_s: float = 0.0
    refused: int = 0
    """Attempts at tasks whose result was not published."""
    baselines: dict[str, Baseline] = field(default_factory=dict)
    """By version."""

    def figures(self) -> dict[str, float]:
        """Return flat figures for a benchmark; one that was not measured is absent."""
        figures = {"queries_ok": float(self.ok), "queries_failed": float(self.failed), "wall_s": self.wall_s}
        figures["refused"] = float(self.refused)
        last = list(self.baselines.values())[-1:]
        others = [("frozen", b.frozen) for b in last] + [("finetuned_stale", b.finetuned) for b in last]
        figures |= {f"recall_at_1_union_{name}": value for name, value in others if value is not None}
        series = {name: values for name in DURATIONS if (values := getattr(self, name))}
        return figures | {f"{name}_p95": float(np.percentile(values, 95)) for name, values in series.items()}


def demo_config(
    root: Path,
    seed: int,
    port: int,
    metrics_port: int,
    image_size: int | None = None,
    weights: Path | None = None,
    task_categories: int = TASK_CATEGORIES,
    backbone: str | None = None,
) -> StreamConfig:
    """Return the demo's configuration: a small network and short stages, about half a minute each on two cores. With
    `weights` a MobileNetV2 that starts from them, at its own rates: minutes per stage. With `backbone` a pretrained
    model of transformers, by name or folder, kept as it is: seconds per stage."""
    model, learning = _learner(image_size, weights, backbone)
    return parse_config(
        {
            "name": "demo",
            "root": str(root),
            "seed": seed,
            "model": model,
            "learning": learning,
            "boundary": {"new_classes": task_categories, "images": None, "age_s": None},
            "ingest": {"thumbnails": True},
            "evaluation": {"held_out": HELD_OUT},
            "service": {"port": port},
            "metrics": {"port": metrics_port},
        }
    )


def _learner(
    image_size: int | None, weights: Path | None, backbone: str | None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the sections `model` and `learning` of the demo's configuration."""
    learning: dict[str, Any] = {
        "base_steps": 300,
        "stage_steps": 60,
        "classes_per_batch": 10,
        "images_per_class": 5,
        # A small net after a short first stage has much to learn.
        "learning_rate": 5e-4,
    }
    model: dict[str, Any] = {"backbone": "conv4", "dim": 128, "image_size": image_size or 32}
    if weights is not None:
        learning = {
            "base_steps": 60,
            "stage_steps": 40,
            "classes_per_batch": 12,
            "images_per_class": 4,
            "augment_flip": True,
        }
        file = str(weights.absolute())
        model = {"backbone": "mobilenetv2", "weights": file, "dim": 128, "image_size": image_size or 96}
    if backbone is not None:
        learning = {"trunk": "frozen"}
        name, size = f"transformers:{backbone.removeprefix('transformers:')}", image_size or 224
        model = {"backbone": name, "pretrained": True, "head": "discriminant", "image_size": size}
    return model, learning


def source_categories(source: Path, stages: int | None) -> tuple[list[Category], int]:
    """Return categories of own images, and how many of them make a task, so that there are `stages` tasks."""
    categories = categories_of(source)
    return categories, max(2, min(TASK_CATEGORIES, len(categories) // (stages or 3)))


def run_demo(
    config: StreamConfig,
    categories: Sequence[Category] | None,
    stages: int | None,
    console: Console,
    hold: bool = False,
) -> Measured:
    """Run until `stages` more versions are served (None: until interrupted) and print the verdict. `categories`: own
    images; None for glyphs, without end. An interrupted demo ends cleanly, and the same root takes it up again: the
    producer goes on behind the last shard that landed."""
    glyphs = (Category(one.class_name, one.images) for one in glyph_categories(config.seed, images=IMAGES))
    arriving = glyphs if categories is None else iter(categories)
    measured = Measured()
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        with waiting(console, "starting Ray, driver, trainer and service (half a minute on two quiet cores)"):
            session = stack.enter_context(run_stream(config))
        urls = session.endpoints
        say(console, f"page {urls.service}/   API {urls.service}/docs   metrics {urls.metrics}")
        before = set(Store.open(session.config.root, session.config.storage_options).tree.versions)
        try:
            # Own images are as many tasks as asked for, of one size.
            base_shards = BASE_CATEGORIES // SHARD_CATEGORIES if categories is None else 0
            _Demo(session, arriving, stages, console, measured, base_shards).run()
        except KeyboardInterrupt:
            say(console, "interrupted: ending the stream; the same command goes on from here")
        if hold:
            _verdict(session.config, before, measured, console)
            say(console, "serving until Ctrl-C")
            with contextlib.suppress(KeyboardInterrupt):
                threading.Event().wait()
    if not hold:
        # The stream has ended: nothing it does takes the cores from the comparison, nor its files from under it.
        _verdict(session.config, before, measured, console)
    measured.wall_s = time.monotonic() - began
    return measured


class _Demo:
    """One run: producer, asker and prober around a session."""

    def __init__(
        self,
        session: Session,
        categories: Iterator[Category],
        stages: int | None,
        console: Console,
        measured: Measured,
        base_shards: int,
    ) -> None:
        self._session, self._console, self._measured = session, console, measured
        self._store = Store.open(session.config.root, session.config.storage_options)
        self._goal = None if stages is None else self._learnt() + stages
        landed = sum(shard.format != "task" for shard in self._store.ledger.shards.values())
        for _ in itertools.islice(categories, landed * SHARD_CATEGORIES):
            pass  # a resumed root has these already
        inbox = inbox_path(session.config)
        self._producer = Producer(
            inbox,
            categories,
            SHARD_CATEGORIES,
            LAND_EVERY_S,
            lambda: self._unlearnt < AHEAD,
            landed,
            base_shards,
        )
        self._stop = threading.Event()
        self._known_versions = set(self._store.tree.versions)
        self._unlearnt = 0

    def run(self) -> None:
        """Run until the goal is served."""
        self._producer.start()
        threads = [threading.Thread(target=t, daemon=True) for t in (self._ask, self._probe)]
        for thread in threads:
            thread.start()
        try:
            with StreamView(self._console, f"stream {self._session.config.name}") as view:
                while (self._goal is None or self._learnt() < self._goal) and not self._is_over():
                    self._look(view)
                    time.sleep(0.25)
        finally:
            self._stop.set()
            self._producer.stop()
            for thread in threads:
                thread.join(timeout=15)

    def _look(self, view: StreamView) -> None:
        self._store.refresh()
        self._unlearnt = unlearnt_shards(self._store)
        status = self._session.look()
        if status is not None:
            view.show(status, {"ok": self._measured.ok, "failed": self._measured.failed})

    def _is_over(self) -> bool:
        """Return whether the source has no more categories, and all landed ones are learnt or skipped."""
        ledger, tree = self._store.ledger, self._store.tree
        waits = ledger.landed or ledger.indexed or ledger.due_tasks(tree.learnt())
        return self._producer.exhausted and not waits

    def _learnt(self) -> int:
        return len(self._store.tree.learnt())

    def _ask(self) -> None:
        """Ask for random known images all the time; note every failure and every new version."""
        chance = random.Random(self._session.config.seed)
        with self._client(retries=0) as client:
            while not self._stop.is_set():
                if self._producer.landed:
                    self._query(client, chance.choice(self._producer.landed))
                self._stop.wait(ASK_EVERY_S)

    def _client(self, retries: int) -> Client:
        """Return a client with the token that this process gave the service, where the environment holds one."""
        options = self._session.config.service
        return Client(
            self._session.endpoints.service, options.token(), retries=retries, stream=self._store.stream_id
        )

    def _query(self, client: Client, shard: LandedShard) -> None:
        try:
            answer = client.search_image(shard.image, k=5)
        except ClientError as error:
            self._measured.failed += 1
            self._measured.failures.append(str(error)[:200])
            return
        self._measured.ok += 1
        if answer.version not in self._known_versions:
            now = time.time()
            store = Store.open(self._session.config.root, self._session.config.storage_options)
            committed = store.tree.get(answer.version).time.timestamp()
            self._known_versions.add(answer.version)
            self._measured.commit_to_served_s.append(now - committed)

    def _probe(self) -> None:
        """Measure, for every shard, the time until its own image finds it."""
        done = 0
        with self._client(retries=2) as client:
            while not self._stop.is_set():
                if done == len(self._producer.landed):
                    self._stop.wait(0.05)
                    continue
                shard = self._producer.landed[done]
                if self._finds(client, shard):
                    self._measured.landed_to_searchable_s.append(time.time() - shard.landed_at)
                    done += 1
                else:
                    self._stop.wait(0.1)

    def _finds(self, client: Client, shard: LandedShard) -> bool:
        with contextlib.suppress(ClientError):
            return any(hit.item_id == shard.item_id for hit in client.search_image(shard.image, k=10).hits)
        return False


def unlearnt_shards(store: Store) -> int:
    """Return how many shards wait to be indexed or learnt. Those of a skipped task wait for nothing."""
    ledger = store.ledger
    due = ledger.due_tasks(store.tree.learnt())
    waiting = [*ledger.landed.values(), *ledger.indexed.values()]
    waiting += [ledger.shards[shard] for task in due for shard in task.shard_ids]
    return sum(shard.format != "task" for shard in waiting)  # a manifest is of no images


def _verdict(config: StreamConfig, before: Container[str], measured: Measured, console: Console) -> None:
    store = Store.open(config.root, config.storage_options)
    rows = stage_rows(store)
    solved = [row for row in rows if row["stage"] == "head" and row["version"] not in before]
    measured.closed_to_learnt_s = [row["closed_to_learnt_s"] for row in solved]
    unlearnt = unlearnt_tasks(store.ledger, store.tree, root=masked_text(store.uri))
    measured.refused = sum(task.refusals for task in store.ledger.tasks.values())
    measured.baselines = _baselines(store, config, console)
    console.print(demo_table(rows, measured.baselines))
    for line in reading(rows, measured.baselines):
        say(console, line)
    if summed := summary(rows, measured.baselines):
        say(console, summed, "bold")
    for task in unlearnt:
        say(console, task.in_words(), "yellow")
    figures = measured.figures()
    for name, label in DURATIONS.items():
        if (p95 := figures.get(f"{name}_p95")) is not None:
            say(console, f"{f'{label}, p95':38} {p95:6.2f} s")
    say(console, f"{'queries':38} {measured.ok} answered, {measured.failed} failed")
    for failure in dict.fromkeys(measured.failures[:5]):
        say(console, f"  failed: {failure}", "red")


def _baselines(store: Store, config: StreamConfig, console: Console) -> dict[str, Baseline]:
    """Measure the same stream without moving the gallery. Return nothing where that is interrupted."""
    with console.status("measuring what the same stream would get without it") as status:
        try:
            return measure_baselines(store, config, lambda line: status.update(f"measuring {line}"))
        except KeyboardInterrupt:
            say(console, "interrupted: the baselines were not measured")
            return {}
