"""A topic under fault: driver, reader, indexers and broker are killed at seeded moments while messages come.

    python -m tests.faults.topics --messages 1000000 --kills 100 --seed 1     # or benchmarks.ingest --parts kafka

The oracle reads the topic itself: every offset is in the gallery once, with its class, or, where a broker that was
killed lost it, in a gap that is reported; and the ledger's ranges of a partition follow each other without a gap or an
overlap, in the order in which they landed.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import random
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from deltalake.exceptions import DeltaError
from numpy.typing import NDArray
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from stream_odml.cluster.runtime import free_port
from stream_odml.ingest.reasons import Reason
from stream_odml.ingest.topic_position import Stamp
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store
from tests.faults.feeder import picture
from tests.faults.live import stream_yaml
from tests.faults.process import StreamProcess, send
from tests.faults.roles import cast_of
from tests.ingest.kafka_broker import BROKER, NOT_CHECKED, Broker, durable_broker, make_topic
from tests.ingest.s3_server import SERVER
from tests.measured import Measured, measuring_arguments

TOPIC, PARTITIONS, CLASSES, PICTURES = "photos", 4, 20, 64
READER = "reader_of_topics"
ROLES = ("driver", "indexer", "broker", READER)
ABSENT = -2
MAX_AHEAD = 50_000
"""Messages that the producer is ahead of the gallery at most: the topic lies in the memory of a server beside it."""
VICTIM_S = 60.0
LOOK_S = 0.5
STALL_S = 600.0
"""Longest without a message that becomes searchable."""


@dataclass(frozen=True)
class Plan:
    """How much of what."""

    messages: int
    kills: int
    pause_s: tuple[float, float] = (0.5, 4.0)


@dataclass
class Topic:
    """The producer's side."""

    broker: Broker
    messages: int
    seen: int = 0
    """Messages that are searchable, as the watcher says."""
    sent: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)

    def start(self) -> threading.Thread:
        """Begin to send."""
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """Send no more."""
        self._stop.set()

    def _run(self) -> None:
        pictures = [picture(f"c{n % CLASSES}", n) for n in range(PICTURES * CLASSES)]
        client = {"bootstrap.servers": self.broker.servers, "linger.ms": 20, "message.timeout.ms": 0}
        producer = Producer({**client, "log_level": 0, "enable.idempotence": False})
        for n in range(self.messages):
            while self.sent - self.seen > MAX_AHEAD and not self._stop.is_set():
                producer.poll(0.1)
            headers: dict[str, str | bytes | None] = {"class": f"c{n % CLASSES}", "n": str(n)}
            while not self._stop.is_set():
                with contextlib.suppress(BufferError):
                    producer.produce(
                        TOPIC, pictures[n % len(pictures)], partition=n % PARTITIONS, headers=headers
                    )
                    break
                producer.poll(0.1)
            producer.poll(0)
            self.sent = n + 1
            if self._stop.is_set():
                return
        while producer.flush(1.0) and not self._stop.is_set():
            continue


def run(report: Measured, seed: int, plan: Plan) -> list[str]:
    """One campaign; figures and rows of `report`; returns what was broken, in words."""
    with durable_broker() as broker, tempfile.TemporaryDirectory(prefix="faults-topics-") as folder:
        make_topic(broker.servers, TOPIC, PARTITIONS)
        root = Path(folder) / "root"
        kafka = {"servers": broker.servers, "options": {"log_level": "0"}}
        config = stream_yaml(
            Path(folder) / "stream.yaml",
            root,
            source={"kind": "kafka", "path": TOPIC, "kafka": kafka},
            boundary={"new_classes": None, "images": None, "age_s": None},
            cluster={"cpus": 2, "workers": 1, "serve": False, "cpus_per_worker": 0.2},
            store={"maintain_every_rows": 2000, "retention_h": 0.0, "lease_s": 1.0},
            service={"port": free_port()},
            metrics={"port": free_port()},
        )
        topic = Topic(broker, plan.messages)
        began = time.monotonic()
        with StreamProcess(config) as process:
            sender = topic.start()
            try:
                _campaign(report, seed, plan, root, topic, process)
            finally:
                topic.stop()
                sender.join(timeout=30)
            # More than were sent: of one that a broker took before it was killed the producer knew nothing.
            sent = list(sent_messages(broker))
            _wait_for(sum(map(len, sent)), root, process)
            seconds = time.monotonic() - began
        found, offsets = judge(root, sent), sum(map(len, sent))
        absent = sum(int((numbers == ABSENT).sum()) for numbers in sent)
        report.figure("kafka_messages", offsets - absent)
        report.figure("kafka_absent_by_broker", absent)
        report.figure("kafka_messages_per_s_under_kills", offsets / seconds)
        for name, word in (("lost", "lost:"), ("twice", "twice:"), ("out_of_order", TOPIC)):
            report.figure(f"kafka_{name}", sum(text.startswith(word) for text in found))
        for text in found[:20]:
            report.say(f"[red]seed {seed}: {text}[/]")
        return found


def _campaign(
    report: Measured, seed: int, plan: Plan, root: Path, topic: Topic, process: StreamProcess
) -> None:
    chosen, kills, store = random.Random(seed), 0, None
    due, moved, memory = time.monotonic() + 20.0, time.monotonic(), dict[str, list[float]]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=report.console) as progress:
        bar = progress.add_task("searchable", total=plan.messages)
        while topic.seen < plan.messages or kills < plan.kills:
            time.sleep(LOOK_S)
            assert not process.has_ended, process.tail()
            with contextlib.suppress(OSError, NotAStreamRoot, DeltaError):
                store = store or Store.open(str(root), keep_gallery=False)
                store.refresh()
                seen = searchable(store)
                moved, topic.seen = (time.monotonic() if seen > topic.seen else moved), seen
            progress.update(bar, completed=topic.seen, description=f"searchable, {kills} kills")
            _sample(memory, process)
            assert time.monotonic() - moved < STALL_S, f"{topic.seen} of {plan.messages}:\n{process.tail()}"
            # Over the whole of the topic, not all while the first messages come.
            is_far_enough = topic.seen > plan.messages * kills // max(1, plan.kills)
            if kills < plan.kills and is_far_enough and time.monotonic() >= due:
                role = ROLES[kills % len(ROLES)] if kills < len(ROLES) else chosen.choice(ROLES)
                victim = _kill(role, topic, process)
                report.row(
                    part="kafka", seed=seed, kill=kills, role=role, victim=victim, searchable=topic.seen
                )
                kills += 1
                report.say(f"kill {kills}: {role}, {topic.seen} searchable")
                due = time.monotonic() + chosen.uniform(*plan.pause_s)
    report.figure("kafka_kills", kills)
    for role, seen_mib in memory.items():
        half = len(seen_mib) // 2
        if half:
            report.figure(f"kafka_{role}_peak_mib", max(seen_mib))
            report.figure(f"kafka_{role}_growth_mib", max(seen_mib[half:]) - max(seen_mib[:half]))


def _kill(role: str, topic: Topic, process: StreamProcess) -> int:
    """SIGKILL one process of a role; its id."""
    if role == "broker":
        topic.broker.kill()
        time.sleep(0.3)
        topic.broker.start()
        return 0
    deadline = time.monotonic() + VICTIM_S
    while time.monotonic() < deadline:
        if pids := cast_of(process.pid).get(role):
            victim = min(pids)
            send(victim, signal.SIGKILL)
            return victim
        time.sleep(0.1)
    raise AssertionError(f"no {role} within {VICTIM_S:.0f} s:\n{process.tail()}")


def _sample(memory: dict[str, list[float]], process: StreamProcess) -> None:
    """Anonymous memory of the largest process of each role that a backlog could grow, MiB."""
    for role in ("driver", "indexer", READER):
        sizes = []
        for pid in cast_of(process.pid).get(role, ()):
            with contextlib.suppress(OSError):
                lines = Path(f"/proc/{pid}/status").read_text().splitlines()
                sizes += [int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon")]
        if sizes:
            memory.setdefault(role, []).append(max(sizes))


def stamps(store: Store) -> Iterator[tuple[Stamp, int, bool]]:
    """The ranges of the ledger in the order in which they landed, with that place, and whether each is searchable."""
    for shard in store.ledger.shards.values():
        stamp = Stamp.of(str(shard.detail.get("stamp", "")))
        if stamp is not None:
            yield stamp, shard.landed_seq, shard.indexed_seq is not None


def searchable(store: Store) -> int:
    """Offsets that are searchable or quarantined."""
    return sum(stamp.end - stamp.start for stamp, _, done in stamps(store) if done)


def _wait_for(messages: int, root: Path, process: StreamProcess) -> None:
    store, deadline = Store.open(str(root), keep_gallery=False), time.monotonic() + STALL_S
    while searchable(store) < messages:
        assert time.monotonic() < deadline, f"{searchable(store)} of {messages}:\n{process.tail()}"
        time.sleep(LOOK_S)
        store.refresh()


def judge(root: Path, sent: Sequence[NDArray[np.int64]]) -> list[str]:
    """Everything that was broken."""
    store = Store.open(str(root))
    found = [text for number in range(PARTITIONS) for text in _ranges(store, number, len(sent[number]))]
    counts = [np.zeros(len(numbers), np.int64) for numbers in sent]
    rows = store.gallery_rows(vectors=False)
    for item, name in zip(rows["item_id"].to_pylist(), rows["class_name"].to_pylist(), strict=True):
        topic, partition, offset = item.split("/")
        if topic != TOPIC or int(offset) >= len(counts[int(partition)]):
            found.append(f"phantom: {item}")
            continue
        if sent[int(partition)][int(offset)] == ABSENT:
            found.append(f"phantom: {item}")
            continue
        counts[int(partition)][int(offset)] += 1
        if name != f"c{sent[int(partition)][int(offset)] % CLASSES}":
            found.append(f"{item} is of {name}, and was sent as {sent[int(partition)][int(offset)]}")
    for partition, seen in enumerate(counts):
        found += [
            f"lost: {TOPIC}/{partition}/{offset}"
            for offset in np.flatnonzero((seen == 0) & (sent[partition] != ABSENT))
        ]
        found += [f"twice: {TOPIC}/{partition}/{offset}" for offset in np.flatnonzero(seen > 1)]
    return found + _unreported(store, sent)


def _unreported(store: Store, sent: Sequence[NDArray[np.int64]]) -> list[str]:
    """Gaps of the topic that no row of the quarantine names, and rows of it that name anything else."""
    gaps = {
        (partition, at) for partition, numbers in enumerate(sent) for at in np.flatnonzero(numbers == ABSENT)
    }
    found, named = [], set[tuple[int, int]]()
    for row in store.quarantine_rows().to_pylist():
        said = re.match(rf"{TOPIC}/(\d+): \d+ offsets, (\d+) to (\d+), not in the topic", row["detail"])
        if row["reason"] != Reason.ABSENT_MESSAGES or said is None:
            found.append(f"quarantined: {row['detail']}")
            continue
        partition, first, last = map(int, said.groups())
        named |= {(partition, at) for at in range(first, last + 1)}
    found += [f"no gap, and named as one: {place}" for place in sorted(named - gaps)]
    return found + [f"unreported gap: {place}" for place in sorted(gaps - named)]


def _ranges(store: Store, partition: int, end: int) -> Iterator[str]:
    """In the order of landing each range begins where the one before it ended."""
    at = 0
    for stamp, _, _ in stamps(store):
        if stamp.partition == partition:
            if stamp.start != at:
                yield f"{TOPIC}/{partition}: the range {stamp.start}-{stamp.end} landed after one that ends at {at}"
            at = stamp.end
    if at != end:
        yield f"{TOPIC}/{partition}: read up to {at} of {end}"


def sent_messages(broker: Broker) -> Iterator[NDArray[np.int64]]:
    """What the topic holds, by partition: the number of the message at each offset, ABSENT where it holds none."""
    client = {"bootstrap.servers": broker.servers, "group.id": "oracle", "enable.partition.eof": True}
    for partition in range(PARTITIONS):
        consumer = Consumer({**client, "enable.auto.commit": False, "log_level": 0})
        consumer.assign([TopicPartition(TOPIC, partition, 0)])
        numbers: list[int] = []
        for _ in itertools.count():
            messages = consumer.consume(5000, timeout=1.0)
            errors = [error.code() for one in messages if (error := one.error()) is not None]
            for one in messages:
                if one.error() is None:
                    offset = one.offset() or 0
                    if offset != len(numbers):  # asked for by itself: a reader that leaps is no gap
                        assert _first_from(broker, partition, len(numbers)) == offset
                        numbers += [ABSENT] * (offset - len(numbers))
                    numbers.append(int(dict(one.headers() or [])["n"] or b"-1"))
            if KafkaError._PARTITION_EOF in errors:
                break
        consumer.close()
        yield np.array(numbers, np.int64)


def _first_from(broker: Broker, partition: int, offset: int) -> int:
    """The first offset that the topic holds from `offset` on, as a reader of its own finds it."""
    client = {
        "bootstrap.servers": broker.servers,
        "group.id": "second",
        "enable.auto.commit": False,
        "log_level": 0,
    }
    consumer = Consumer({**client, "auto.offset.reset": "error"})
    consumer.assign([TopicPartition(TOPIC, partition, offset)])
    try:
        while True:
            message = consumer.poll(1.0)
            if message is not None and message.error() is None:
                return message.offset() or 0
    finally:
        consumer.close()


def main() -> None:
    """Run it with each seed; the exit code is 1 when a promise was broken."""
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # so that the stream's processes and the broker end with us
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--messages", type=int, default=1_000_000, help="messages in all")
    parser.add_argument(
        "--kills", type=int, default=100, help="SIGKILLs of driver, indexer, broker and reader"
    )
    measuring_arguments(parser)
    arguments = parser.parse_args()
    if BROKER is None or SERVER is None:
        print(NOT_CHECKED, file=sys.stderr)
        return
    if arguments.quick:
        arguments.messages, arguments.kills = min(arguments.messages, 20_000), min(arguments.kills, 6)
    report, broken = Measured("topics", arguments.seeds, arguments.quick), 0
    for seed in report.seeds:
        broken += len(run(report, seed, Plan(arguments.messages, arguments.kills)))
    report.write(arguments.measured)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
