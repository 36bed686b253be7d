"""A running stream: how long until a shard that landed is found by its own image, idle and while a stage is learnt."""

from __future__ import annotations

import contextlib
import tempfile
import time
import urllib.request
from collections.abc import Callable
from itertools import islice

from prometheus_client.parser import text_string_to_metric_families

from benchmarks.common import Report, percentile
from stream_odml.client import Client, ClientError
from stream_odml.cluster.session import Session, run_stream
from stream_odml.config.stream import StreamConfig, parse_config
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path

CATEGORIES, IMAGES = 5, 20
"""Of a shard: 100 images."""
BASE_STEPS, STAGE_STEPS = 40, 6000
WAIT_S = 120.0


def measure(report: Report, seed: int) -> None:
    """Shards of 100 images land one after the other; the clock stops when the API returns the asked image first."""
    shards = 5 if report.quick else 50
    with tempfile.TemporaryDirectory() as folder, run_stream(stream_config(folder, seed)) as session:
        live = Live(session, seed)
        live.find(live.land("warm-0"))
        idle = [live.measure(report, f"idle-{n}", "idle") for n in range(shards)]
        report.say(f"idle: {shards} shards")
        complete_task(live.inbox, "base", [])
        live.wait(lambda: live.status()["stages_committed"] == 1, "the base stage")
        warm = live.metrics()
        for number in range(5):
            live.find(live.land(f"task-{number}"))
        complete_task(live.inbox, "next", [])
        live.wait(lambda: live.phase() == "training", "the stage")
        training = []
        for number in range(shards):
            training.append(live.measure(report, f"busy-{number}", "training"))
            if live.phase() != "training":
                report.say(f"the stage ended after {number + 1} shards")
                break
        steps = live.metrics()
        report.row(
            part="live", seed=seed, metrics={"warm": warm, "end": steps}, status=live.status()["stage"]
        )
        _figures(report, idle, training, warm, steps)


def _figures(
    report: Report, idle: list[float], training: list[float], warm: dict[str, float], end: dict[str, float]
) -> None:
    report.figure("searchable_idle_s_p95", percentile(idle, 95))
    report.figure("searchable_training_s_p95", percentile(training, 95))
    report.figure("searchable_training_shards", len(training))
    spent = {name: end[name] - warm[name] for name in end}
    if spent["boundary_to_first_step_seconds_count"]:
        first = spent["boundary_to_first_step_seconds_sum"] / spent["boundary_to_first_step_seconds_count"]
        report.figure("first_batch_s", first)
    if spent["step_seconds_sum"]:
        report.figure("data_wait_fraction", spent["data_wait_seconds_sum"] / spent["step_seconds_sum"])


def stream_config(folder: str, seed: int) -> StreamConfig:
    """A small net on two workers, tasks closed by their producer only."""
    return parse_config(
        {
            "name": "ingest",
            "root": f"{folder}/root",
            "seed": seed,
            "method": "distilled",  # every stage trains
            "model": {"backbone": "conv4", "dim": 64, "image_size": 32},
            "learning": {
                "base_steps": BASE_STEPS,
                "stage_steps": STAGE_STEPS,
                "classes_per_batch": 12,
                "images_per_class": 4,
            },
            "boundary": {"new_classes": None, "images": None, "age_s": None},
            "source": {"poll_s": 0.2},
            "service": {"port": 0},
            "metrics": {"port": 0},
        }
    )


class Live:
    """A producer and a client of one running stream."""

    part = "live"
    """Of the benchmark, for the rows of what is measured."""

    def __init__(self, session: Session, seed: int) -> None:
        self.inbox = inbox_path(session.config)
        self._session = session
        self._client = Client(session.endpoints.service, retries=2)
        self._categories = glyph_categories(seed, images=IMAGES)

    def land(self, name: str) -> tuple[str, bytes]:
        """Land one shard; the id and the image to ask for."""
        items = [
            NewItem(image, category.class_name, f"{name}/{category.class_name}/{number}")
            for category in islice(self._categories, CATEGORIES)
            for number, image in enumerate(category.images)
        ]
        land_items(self.inbox, name, items)
        return items[-1].item_id or "", items[-1].image

    def find(self, asked: tuple[str, bytes]) -> float:
        """Ask until the item itself comes first; the seconds that it took."""
        item_id, image = asked
        began = time.perf_counter()
        while time.perf_counter() - began < WAIT_S:
            with contextlib.suppress(ClientError):
                hits = self._client.search_image(image, k=1).hits
                if hits and hits[0].item_id == item_id:
                    return time.perf_counter() - began
            time.sleep(0.02)
        raise TimeoutError(f"{item_id} was not found within {WAIT_S} s")

    def measure(self, report: Report, name: str, phase: str) -> float:
        """Land a shard, find it, note how long it took."""
        seconds = self.find(self.land(name))
        report.row(part=self.part, shard=name, phase=phase, seconds=seconds)
        return seconds

    def status(self) -> dict[str, object]:
        """What the driver says."""
        return self._session.status(timeout_s=30)

    def phase(self) -> str:
        """Of the trainer."""
        stage = self.status()["stage"]
        return str(stage["phase"]) if isinstance(stage, dict) else ""

    def metrics(self) -> dict[str, float]:
        """Sums and counts of the driver's histograms."""
        return scraped_histograms(self._session.endpoints.metrics)

    def wait(self, done: Callable[[], bool], what: str) -> None:
        """Until it is so. Raises TimeoutError."""
        began = time.monotonic()
        while not done():
            if time.monotonic() - began > WAIT_S:
                raise TimeoutError(f"{what} did not come within {WAIT_S} s: {self.status()}")
            time.sleep(0.2)


def scraped_histograms(url: str) -> dict[str, float]:
    """`<name>_sum` and `<name>_count` of the unlabelled histograms that a driver exports."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.name.removeprefix("stream_odml_"): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.endswith(("_sum", "_count")) and not sample.labels
    }
