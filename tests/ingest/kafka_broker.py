"""Brokers for tests and benchmarks: a real one (Tansu: see tests/kafka-broker.txt), and librdkafka's mock of one.

As a command, `python -m tests.ingest.kafka_broker TOPIC PARTITIONS`, it starts one with a topic, prints its address as
JSON (null when there is no broker), and serves until it is terminated; a line on its input kills the broker by
SIGKILL and starts it again over the same messages.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import confluent_kafka
from confluent_kafka import KafkaException, Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from tests.ingest.s3_server import SERVER as S3_SERVER
from tests.ingest.s3_server import make_bucket, s3_options, s3_server

BROKER = os.environ.get("STREAM_ODML_KAFKA_BROKER") or shutil.which("tansu")
NOT_CHECKED = "NOT CHECKED: no Kafka broker; tests/kafka-broker.txt says how to get one"
BUCKET = "broker"


class Broker:
    """A broker process of our own. With `storage` an S3 prefix, its messages outlive a kill."""

    def __init__(
        self, storage: str = "memory://tansu/", environment: Mapping[str, str] | None = None
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.servers = f"127.0.0.1:{self.port}"
        self._storage, self._environment = storage, {**os.environ, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start it, or start it again. Raises TimeoutError when it does not answer."""
        assert BROKER is not None, NOT_CHECKED
        url = f"tcp://{self.servers}"
        command = [BROKER, "broker", "--listener-url", url, "--advertised-listener-url", url]
        self._process = subprocess.Popen(
            [*command, "--storage-engine", self._storage],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=self._environment,
            start_new_session=True,  # a signal to all of a terminal is for who started it to answer
        )
        for _ in range(3000):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.02)
        raise TimeoutError(f"{BROKER} did not answer within a minute")

    def kill(self) -> None:
        """End it by SIGKILL."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@contextlib.contextmanager
def durable_broker() -> Iterator[Broker]:
    """A broker whose messages lie in an S3 server beside it, so that it can be killed."""
    with s3_server() as port:
        make_bucket(port, BUCKET)
        options = s3_options(port)
        broker = Broker(f"s3://{BUCKET}/", {**options, "AWS_ENDPOINT": options["AWS_ENDPOINT_URL"]})
        try:
            yield broker
        finally:
            broker.kill()


@contextlib.contextmanager
def memory_broker() -> Iterator[Broker]:
    """A broker that forgets everything when it ends."""
    broker = Broker()
    try:
        yield broker
    finally:
        broker.kill()


@contextlib.contextmanager
def mock_broker(brokers: int = 1) -> Iterator[tuple[str, Producer]]:
    """librdkafka's mock cluster: its addresses and a producer. It makes topics of four partitions when they are named,
    and keeps about 5 MiB of a partition."""
    producer = Producer({"test.mock.num.brokers": brokers, "bootstrap.servers": "mock", "log_level": 0})
    found = producer.list_topics(timeout=60).brokers.values()
    yield ",".join(f"{about.host}:{about.port}" for about in found), producer


def set_leader(producer: Producer, topic: str, partition: int, leader: int) -> None:
    """Let another broker of a mock cluster lead a partition, or with -1 none; none only while nobody fetches it, else
    the mock ends its process."""
    _tell_mock(producer, "partition_set_leader", topic.encode(), partition, leader)


def set_broker(producer: Producer, broker: int, is_up: bool) -> None:
    """Take a broker of a mock cluster down, or let it come up again: it stays the leader of its partitions."""
    _tell_mock(producer, f"broker_set_{'up' if is_up else 'down'}", broker)


def _tell_mock(producer: Producer, function: str, *arguments: object) -> None:
    """Call a function of the library that it has for C alone."""
    package = Path(confluent_kafka.__file__).parent
    library = ctypes.CDLL(str(next(package.with_name("confluent_kafka.libs").glob("librdkafka*"))))
    library.rd_kafka_handle_mock_cluster.restype = ctypes.c_void_p
    handle = ctypes.cast(id(producer) + object.__basicsize__, ctypes.POINTER(ctypes.c_void_p))[0]
    cluster = library.rd_kafka_handle_mock_cluster(ctypes.c_void_p(handle))
    assert getattr(library, f"rd_kafka_mock_{function}")(ctypes.c_void_p(cluster), *arguments) == 0


def make_topic(servers: str, topic: str, partitions: int, again: bool = True) -> None:
    """Make a topic; for a while again, since a broker that has just begun may not know itself yet."""
    admin = AdminClient({"bootstrap.servers": servers, "log_level": 0})
    for attempt in range(20):
        try:
            admin.create_topics([NewTopic(topic, partitions)])[topic].result(10)
            return
        except KafkaException:
            if not again or attempt == 19:
                raise
            time.sleep(0.2)


def main(topic: str, partitions: str) -> None:
    """Serve a topic until terminated."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    if BROKER is None or S3_SERVER is None:
        print("null", flush=True)
        print(NOT_CHECKED, file=sys.stderr)
        return
    with durable_broker() as broker:
        make_topic(broker.servers, topic, int(partitions))
        print(json.dumps({"servers": broker.servers}), flush=True)
        for _ in sys.stdin:
            broker.kill()
            broker.start()
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
