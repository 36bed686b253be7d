"""A topic as the source: speed beside a directory, time until a message is found, and SIGKILLs with an oracle."""

from __future__ import annotations

import contextlib
import io
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np
import torch
from confluent_kafka import Producer
from PIL import Image

from benchmarks.beside import add_measured, beside
from benchmarks.common import Report, percentile
from benchmarks.ingest.live import CATEGORIES, Live, stream_config
from stream_odml.cluster.session import run_stream
from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.kafka_source import KafkaSource
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import DirectorySource, Source
from stream_odml.ingest.spool import Spool
from stream_odml.learn.embedder import build_embedder
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.storage.files import open_files

TOPIC, PARTITIONS = "photos", 4
MESSAGES, KILLS = 1_000_000, 100
SIZE, ROWS, POLL_S = 32, 1000, 0.2
BROKER = "tests.ingest.kafka_broker"


def measure(report: Report, seed: int, messages: int = MESSAGES, kills: int = KILLS) -> None:
    """All of it; the campaign with `messages` and `kills`."""
    with beside(BROKER, TOPIC, str(PARTITIONS)) as broker:
        if broker is None:
            report.say("NOT MEASURED: no broker; tests/kafka-broker.txt says how to get one")
            return
        _speed(report, seed, broker["servers"])
    with beside(BROKER, TOPIC, str(PARTITIONS)) as broker:
        _searchable(report, seed, broker["servers"])
    report.write(keep=True)  # before what takes long
    try:
        add_measured(report, "tests.faults.topics", seed, "--messages", str(messages), "--kills", str(kills))
    finally:  # a campaign that is stopped, or finds something broken, says how far it came
        report.write(keep=True)
    add_measured(report, "tests.faults.topic_holes", seed)


# -- speed ------------------------------------------------------------------------------------------------------------


def _speed(report: Report, seed: int, servers: str) -> None:
    """Images of 1 kB a second from the source to their embeddings: a topic, and the same images in a directory."""
    count, repeats = (2 * ROWS, 2) if report.quick else (12 * ROWS, 5)
    torch.set_num_threads(1)
    items = list(_items(count, seed))
    report.row(part="kafka", image_bytes=float(np.mean([len(item.image) for item in items])))
    with tempfile.TemporaryDirectory() as folder:
        for number, start in enumerate(range(0, count, ROWS)):
            land_items(f"{folder}/inbox", f"s{number:03d}", items[start : start + ROWS])
        _send(servers, items)
        topic, directory = [], []
        for repeat in range(repeats):  # in turn, so that a busy moment of the machine meets both
            directory.append(_indexed(DirectorySource(f"{folder}/inbox"), count, folder, seed))
            spool = Spool(f"{folder}/spool-{repeat}", None)
            source = KafkaSource([TOPIC], KafkaOptions(servers=servers, range_messages=ROWS), spool)
            topic.append(_indexed(source, count, folder, seed))
            source.close()
    report.row(part="kafka", seed=seed, images=count, topic_s=topic, directory_s=directory)
    report.figure("kafka_messages_per_s", count / float(np.median(topic)))
    report.figure("kafka_over_directory", float(np.median(np.divide(directory, topic))))


def _indexed(source: Source, count: int, folder: str, seed: int) -> float:
    """Seconds from the first shard that is found until all are indexed: one thread finds them, this one indexes."""
    model = build_embedder(EmbedderSpec("conv4", dim=64, image_size=SIZE), seed)
    files, options = open_files(f"{folder}/root"), IndexOptions(64_000_000, False, 0.0)
    found: SimpleQueue[ShardRef] = SimpleQueue()
    done = threading.Event()

    def find() -> None:
        known: set[str] = set()
        while not done.is_set():
            refs = source.poll(known)
            for ref in refs:
                known.add(ref.stamp)
                found.put(ref)
            if (
                not refs
            ):  # as the driver does: a source that is asked without a pause takes time from the indexer
                done.wait(POLL_S)

    finder = threading.Thread(target=find, daemon=True)
    finder.start()
    ref, rows = found.get(timeout=60), 0
    began = time.perf_counter()
    while rows < count:
        rows += len(index_shard(ref, model, "v0000-00000000", files, options).rows)
        ref = found.get(timeout=60) if rows < count else ref
    seconds = time.perf_counter() - began
    done.set()
    finder.join()
    return seconds


def _items(count: int, seed: int) -> Iterator[NewItem]:
    """Noise as JPEG, about 1 kB each."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        sink = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)).save(sink, "JPEG", quality=40)
        yield NewItem(sink.getvalue(), f"c{number % 50}", f"i{number}")


def _send(servers: str, items: Sequence[NewItem], **headers: str) -> None:
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 5, "log_level": 0})
    for number, item in enumerate(items):
        results: dict[str, Any] = {"class": item.class_name, "id": item.item_id or "", **headers}
        producer.produce(TOPIC, item.image, partition=number % PARTITIONS, headers=results)
        producer.poll(0)
    if producer.flush(60):
        raise TimeoutError("the broker did not take all messages within 60 s")


# -- latency ----------------------------------------------------------------------------------------------------------


class LiveTopic(Live):
    """A producer of messages, and a client, of one running stream."""

    part = "kafka"

    def __init__(self, session: Any, seed: int, servers: str) -> None:
        super().__init__(session, seed)
        self._servers = servers

    def land(self, name: str) -> tuple[str, bytes]:
        """Send the images of one shard; the id and the image to ask for."""
        items = [
            NewItem(image, category.class_name, f"{name}/{category.class_name}/{number}")
            for category, _ in zip(self._categories, range(CATEGORIES), strict=False)
            for number, image in enumerate(category.images)
        ]
        _send(self._servers, items)
        return items[-1].item_id or "", items[-1].image

    def complete(self, task: str) -> None:
        """Send a control message."""
        _send(self._servers, [NewItem(b"", "control")], **{"task-complete": task})


def _searchable(report: Report, seed: int, servers: str) -> None:
    """100 images are sent at a time; the clock stops when the API returns the asked one first."""
    shards = 5 if report.quick else 50
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        source = {"kind": "kafka", "path": TOPIC, "poll_s": 0.2, "kafka": {"servers": servers}}
        config = StreamConfig.model_validate({**stream_config(folder, seed).model_dump(), "source": source})
        session = stack.enter_context(run_stream(config))
        live = LiveTopic(session, seed, servers)
        live.find(live.land("warm-0"))
        idle = [live.measure(report, f"idle-{n}", "idle") for n in range(shards)]
        live.complete("base")
        live.wait(lambda: live.status()["stages_committed"] == 1, "the base stage")
        for number in range(5):
            live.find(live.land(f"task-{number}"))
        live.complete("next")
        live.wait(lambda: live.phase() == "training", "the stage")
        training = []
        for number in range(shards):
            training.append(live.measure(report, f"busy-{number}", "training"))
            if live.phase() != "training":
                break
        spool = sum(path.stat().st_size for path in (Path(config.root) / "spool").iterdir())
    report.row(part="kafka", seed=seed, idle_s=idle, training_s=training, spool_bytes=spool)
    report.figure("kafka_searchable_idle_s_p95", percentile(idle, 95))
    report.figure("kafka_searchable_training_s_p95", percentile(training, 95))
