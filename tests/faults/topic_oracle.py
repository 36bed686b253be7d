"""What a topic holds, as its readers find it, against the gallery, the ledger and the quarantine of a root.

Every offset is in the gallery once, with its class, or, where a broker that was killed lost it, in a gap that is
reported; and the ledger's ranges of a partition follow each other without a gap or an overlap, in the order in which
they landed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from confluent_kafka import Consumer, KafkaError, TopicPartition
from numpy.typing import NDArray

from stream_odml.ingest.reasons import Reason
from stream_odml.ingest.topic_position import Stamp
from stream_odml.store.store import Store
from tests.ingest.kafka_broker import Broker

TOPIC, PARTITIONS, CLASSES = "photos", 4, 20
ABSENT = -2


def stamps(store: Store) -> Iterator[tuple[Stamp, int, bool]]:
    """The ranges of the ledger in the order in which they landed, with that place, and whether each is searchable."""
    for shard in store.ledger.shards.values():
        stamp = Stamp.of(str(shard.detail.get("stamp", "")))
        if stamp is not None:
            yield stamp, shard.landed_seq, shard.indexed_seq is not None


def searchable(store: Store) -> int:
    """Offsets that are searchable or quarantined."""
    return sum(stamp.end - stamp.start for stamp, _, done in stamps(store) if done)


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
