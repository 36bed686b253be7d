"""A followed topic for tests: a source over one spool, all that came out of it, and a producer."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.kafka_source import KafkaSource
from stream_odml.ingest.reading import RawItem
from stream_odml.ingest.reasons import RowProblem, TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.spool import Spool
from tests.ingest.helpers import read
from tests.ingest.pictures import picture

WAIT_S = 600


class Followed:
    """A source over one spool, and all that came out of it; it can die and come again."""

    def __init__(self, servers: str, folder: Path, topic: str, **options: Any) -> None:
        given: dict[str, Any] = {"range_s": 0.05, "options": {"log_level": "0"}} | options
        self.options = KafkaOptions(servers=servers, **given)
        self.folder, self.topic = folder, topic
        self.refs: list[ShardRef] = []
        self.source = self.begin()

    def begin(self) -> Any:
        spool = Spool(str(self.folder / "spool"), None)
        return KafkaSource(self.topic.split(","), self.options, spool)

    def die(self, forget: int = 0) -> None:
        """End the source; the last refs never reached the ledger."""
        self.source.close()
        self.refs = self.refs[: len(self.refs) - forget]
        self.source = self.begin()

    def poll(self) -> list[ShardRef]:
        new: list[ShardRef] = self.source.poll({ref.stamp for ref in self.refs})
        self.refs += new
        return new

    def until_it_fails(self) -> None:
        """Poll, with a look at the spool each time, until that raises; return after minutes in which it has not."""
        deadline = time.monotonic() + WAIT_S
        while time.monotonic() < deadline:
            self.polls(1)

    def polls(self, count: int) -> None:
        """Poll so often, with a look at the spool each time."""
        for _ in range(count):
            self.poll()
            self.source._spool_due = 0.0

    def until(self, count: int) -> list[RawItem]:
        """Poll until so many items came."""
        deadline = time.monotonic() + WAIT_S
        while len(found := self.items()) < count:
            assert time.monotonic() < deadline, f"{len(found)} of {count} items"
            self.poll()
        return found

    def patiently(self, is_done: Callable[[], bool]) -> None:
        """Poll as the driver does: what is unreachable now is asked for again."""
        deadline = time.monotonic() + WAIT_S
        while not is_done():
            assert time.monotonic() < deadline
            try:
                self.poll()
            except TransientReadError:
                time.sleep(0.1)

    def items(self) -> list[RawItem]:
        return [item for ref in self.refs for item in read(ref)[0]]

    def problems(self) -> list[RowProblem]:
        return [problem for ref in self.refs for problem in read(ref)[1]]


def send(
    broker: tuple[str, Producer], topic: str, numbers: range, partition: int | None = None, **more: Any
) -> None:
    for n in numbers:
        headers = {"class": f"class {n % 3}", "id": f"i{n}", "colour": "red"}
        value = more["value"] if "value" in more else picture(n)
        to = n % 4 if partition is None else partition
        broker[1].produce(topic, **{"headers": headers, **more, "value": value}, partition=to)
        broker[1].poll(0)
    assert broker[1].flush(30) == 0
