"""A topic whose retention is too short for a driver that is killed: each offset is an item or part of a reported hole.

The broker is librdkafka's mock, which keeps some 5 MiB of a partition. The oracle counts the offsets that were sent.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from confluent_kafka import Producer

from stream_odml.ingest.reasons import Reason
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store
from tests.faults.feeder import picture
from tests.faults.topic_oracle import CLASSES, PARTITIONS, TOPIC, searchable
from tests.ingest.kafka_broker import mock_broker
from tests.measured import Measured, measure_each_seed

FEW, MANY = 400, 6000
PADDING = bytes(8000)
LONGEST_S = 300.0


def run_holes(report: Measured, seed: int) -> list[str]:
    """Send more than the topic keeps while nobody reads; what was broken, in words."""
    with mock_broker() as (servers, producer), tempfile.TemporaryDirectory(prefix="topic-holes-") as folder:
        producer.list_topics(TOPIC, timeout=10)  # makes it
        root = str(Path(folder) / "root")
        command = [sys.executable, "-m", "tests.faults.topic_driver", root, servers, TOPIC]
        _send(producer, FEW)
        driver = subprocess.Popen(command)
        try:
            _until(root, FEW)
            for sent, enough in ((MANY, FEW + MANY // 2), (FEW, FEW + MANY + FEW)):
                driver.kill()
                driver.wait()
                _send(producer, sent)
                driver = subprocess.Popen(command)
                _until(root, enough)
        finally:
            driver.kill()
            driver.wait()
        found, holes, lost = judge_holes(root, FEW + MANY + FEW)
    report.row(part="kafka", seed=seed, sent=FEW + MANY + FEW, holes=holes, messages_in_holes=lost)
    report.figure("kafka_holes", holes)
    report.figure("kafka_holes_unreported", len(found))
    return found if holes else [*found, "no hole: the topic kept all of it"]


def _send(producer: Producer, count: int) -> None:
    for n in range(count):
        value = picture(f"c{n % CLASSES}", n % 100) + PADDING
        producer.produce(TOPIC, value, partition=n % PARTITIONS, headers={"class": f"c{n % CLASSES}"})
        producer.poll(0)
    assert producer.flush(60) == 0


def _until(root: str, offsets: int) -> None:
    store, deadline = None, time.monotonic() + LONGEST_S
    while store is None or searchable(store) < offsets:
        assert time.monotonic() < deadline, f"{store and searchable(store)} of {offsets}"
        time.sleep(0.1)
        try:
            store = store or Store.open(root, keep_gallery=False)
            store.refresh()
        except (OSError, NotAStreamRoot):
            continue


def judge_holes(root: str, sent: int) -> tuple[list[str], int, int]:
    """What is wrong, and how many holes of how many messages were reported."""
    store = Store.open(root)
    seen: Counter[tuple[int, int]] = Counter()
    for item in store.gallery_rows(vectors=False)["item_id"].to_pylist():
        _, partition, offset = item.split("/")
        seen[int(partition), int(offset)] += 1
    found, holes, lost = [], 0, 0
    for row in store.quarantine_rows().to_pylist():
        said = re.match(rf"{TOPIC}/(\d+): (\d+) offsets, (\d+) to (\d+), deleted", row["detail"])
        if row["reason"] != Reason.LOST_MESSAGES or said is None:
            found.append(f"quarantined: {row['detail']}")
            continue
        partition, count, first, last = map(int, said.groups())
        holes, lost = holes + 1, lost + count
        seen.update((partition, offset) for offset in range(first, last + 1))
    expected = {
        (partition, offset) for partition in range(PARTITIONS) for offset in range(sent // PARTITIONS)
    }
    found += [f"in no hole and no item: {place}" for place in sorted(expected - seen.keys())]
    found += [f"never sent: {place}" for place in sorted(seen.keys() - expected)]
    return found + [f"twice: {place}" for place, times in seen.items() if times > 1], holes, lost


def main() -> None:
    """Run it with each seed; the exit code is 1 when a promise was broken."""
    broken: list[str] = []
    measure_each_seed("topic-holes", __doc__, lambda report, seed: broken.extend(run_holes(report, seed)))
    for text in broken[:20]:
        print(text)
    sys.exit(1 if broken else 0)


if __name__ == "__main__":
    main()
