"""A topic under fault: driver, reader, indexers and broker are killed at seeded moments while messages come.

    python -m tests.faults.topics --messages 1000000 --kills 100 --seed 1     # or benchmarks.ingest --parts kafka

The oracle reads the topic itself: every offset is in the gallery once, with its class, or, where a broker that was
killed lost it, in a gap that is reported; and the ledger's ranges of a partition follow each other without a gap or an
overlap, in the order in which they landed.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from confluent_kafka import Producer
from deltalake.exceptions import DeltaError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from stream_odml.cluster.runtime import free_port
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store
from tests.faults.feeder import picture
from tests.faults.live import stream_yaml
from tests.faults.process import StreamProcess, send
from tests.faults.roles import cast_of
from tests.faults.topic_oracle import ABSENT, CLASSES, PARTITIONS, TOPIC, judge, searchable, sent_messages
from tests.ingest.kafka_broker import BROKER, NOT_CHECKED, Broker, durable_broker, make_topic
from tests.ingest.s3_server import SERVER
from tests.measured import Measured, measuring_arguments

PICTURES = 64
READER = "reader_of_topics"
ROLES = ("driver", "indexer", "broker", READER)
MAX_AHEAD, BURST = 50_000, 8_000
"""Messages that the producer is ahead of the gallery at most, as the topic lies in the memory of a server beside it,
and how many it then sends at once: each batch is an object of that server, which lists all of them at every read."""
FLUSH_S = 60.0
"""Longest that the producer has for what it took, once it is to stop."""
VICTIM_S = 60.0
LOOK_S = 0.5
SIGNALS_S = 5.0
"""In which several signals are one: a terminal and a parent may both send theirs."""
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

    @property
    def is_stopped(self) -> bool:
        """Whether it was stopped."""
        return self._stop.is_set()

    def _run(self) -> None:
        pictures = [picture(f"c{n % CLASSES}", n) for n in range(PICTURES * CLASSES)]
        client = {"bootstrap.servers": self.broker.servers, "linger.ms": 20, "message.timeout.ms": 0}
        producer = Producer({**client, "log_level": 0, "enable.idempotence": False})
        for n in range(self.messages):
            if self.sent - self.seen > MAX_AHEAD:
                while self.sent - self.seen > MAX_AHEAD - BURST and not self._stop.is_set():
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
                break
        deadline = math.inf
        while producer.flush(1.0) and time.monotonic() < deadline:
            deadline = min(deadline, time.monotonic() + FLUSH_S) if self._stop.is_set() else deadline


def run(report: Measured, seed: int, plan: Plan) -> list[str]:
    """One campaign; figures and rows of `report`; returns what was broken, in words.

    A SIGTERM or SIGINT stops it early: what was sent until then is waited for and judged, and reported as that much.
    """
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
        with _stopping(topic), StreamProcess(config) as process:
            sender = topic.start()
            try:
                _campaign(report, seed, plan, root, topic, process)
            finally:
                if topic.is_stopped:
                    report.say(
                        f"stopped early, at {topic.sent} of {plan.messages} messages: these are judged"
                    )
                topic.stop()
                sender.join(timeout=FLUSH_S + 30)
            # More than were sent: of one that a broker took before it was killed the producer knew nothing.
            sent = list(sent_messages(broker))
            report.say(f"{sum(map(len, sent))} messages in the topic, {topic.seen} searchable")
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


@contextlib.contextmanager
def _stopping(topic: Topic) -> Iterator[None]:
    """Let SIGTERM and SIGINT stop the producer, and end this process when they come again later."""
    first = math.inf

    def stop(*_: object) -> None:
        nonlocal first
        if time.monotonic() > first + SIGNALS_S:
            sys.exit(143)
        first = min(first, time.monotonic())
        topic.stop()

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _campaign(
    report: Measured, seed: int, plan: Plan, root: Path, topic: Topic, process: StreamProcess
) -> None:
    memory = dict[str, list[float]]()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    try:
        with Progress(*columns, console=report.console) as progress:
            _hurt(report, seed, plan, _Watch(root, topic, process, memory, progress))
    finally:  # also of a campaign that broke
        report.figure(
            "kafka_kills", sum(row.get("part") == "kafka" and row["seed"] == seed for row in report.rows)
        )
        for role, seen_mib in memory.items():
            half = len(seen_mib) // 2
            if half:
                report.figure(f"kafka_{role}_peak_mib", max(seen_mib))
                report.figure(f"kafka_{role}_growth_mib", max(seen_mib[half:]) - max(seen_mib[:half]))


@dataclass
class _Watch:
    """Looks at the root while the campaign runs."""

    root: Path
    topic: Topic
    process: StreamProcess
    memory: dict[str, list[float]]
    progress: Progress
    _store: Store | None = None
    _moved: float = field(default_factory=time.monotonic)

    def look(self, bar: TaskID, kills: int) -> None:
        """Note how much is searchable and what processes take. Raises AssertionError once nothing moves any more."""
        assert not self.process.has_ended, self.process.tail()
        with contextlib.suppress(OSError, NotAStreamRoot, DeltaError):
            self._store = self._store or Store.open(str(self.root), keep_gallery=False)
            self._store.refresh()
            seen = searchable(self._store)
            self._moved = time.monotonic() if seen > self.topic.seen else self._moved
            self.topic.seen = seen
        self.progress.update(bar, completed=self.topic.seen, description=f"searchable, {kills} kills")
        _sample(self.memory, self.process)
        stalled = time.monotonic() - self._moved
        assert stalled < STALL_S, f"{self.topic.seen} of {self.topic.messages}:\n{self.process.tail()}"


def _hurt(report: Measured, seed: int, plan: Plan, watch: _Watch) -> None:
    """Kill, until all is searchable and all kills are done, or it is stopped."""
    chosen, kills, topic = random.Random(seed), 0, watch.topic
    began, due = time.monotonic(), time.monotonic() + 20.0
    bar = watch.progress.add_task("searchable", total=plan.messages)
    while (topic.seen < plan.messages or kills < plan.kills) and not topic.is_stopped:
        time.sleep(LOOK_S)
        watch.look(bar, kills)
        # Over the whole of the topic, not all while the first messages come.
        is_far_enough = topic.seen > plan.messages * kills // max(1, plan.kills)
        if kills < plan.kills and is_far_enough and time.monotonic() >= due:
            role = ROLES[kills % len(ROLES)] if kills < len(ROLES) else chosen.choice(ROLES)
            victim = _kill(role, topic, watch.process)
            kills += 1
            seconds = time.monotonic() - began
            report.row(
                part="kafka",
                seed=seed,
                kill=kills,
                role=role,
                victim=victim,
                searchable=topic.seen,
                seconds=seconds,
            )
            report.say(f"kill {kills}: {role}, {topic.seen} searchable")
            due = time.monotonic() + chosen.uniform(*plan.pause_s)


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


def _wait_for(messages: int, root: Path, process: StreamProcess) -> None:
    store, deadline = Store.open(str(root), keep_gallery=False), time.monotonic() + STALL_S
    while searchable(store) < messages:
        assert time.monotonic() < deadline, f"{searchable(store)} of {messages}:\n{process.tail()}"
        time.sleep(LOOK_S)
        store.refresh()


def main() -> None:
    """Run it with each seed; the exit code is 1 when a promise was broken."""
    # So that the stream's processes and the broker end with us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
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
    try:
        for seed in report.seeds:
            broken += len(run(report, seed, Plan(arguments.messages, arguments.kills)))
    finally:
        report.write(arguments.measured)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
