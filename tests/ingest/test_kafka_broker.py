"""Topics of a real broker: it is killed, its topics are made anew, and partitions come later."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from stream_odml.ingest import kafka_source
from stream_odml.ingest.kafka_process import KafkaProcess
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.topic_position import TopicReplaced
from tests.ingest.followed import Followed, send
from tests.ingest.kafka_broker import (
    BROKER,
    NOT_CHECKED,
    Broker,
    durable_broker,
    make_topic,
    memory_broker,
)
from tests.ingest.s3_server import NOT_CHECKED as NO_S3
from tests.ingest.s3_server import SERVER

pytestmark = pytest.mark.skipif(BROKER is None, reason=NOT_CHECKED)
TOPIC = "photos"


@pytest.fixture
def broker() -> Iterator[Broker]:
    with memory_broker() as made:
        make_topic(made.servers, TOPIC, 4)
        yield made


def producer_of(broker: Broker) -> Producer:
    return Producer({"bootstrap.servers": broker.servers, "log_level": 0})


def test_a_topic_that_is_not_there_is_said_with_what_to_do(broker: Broker, tmp_path: Path) -> None:
    followed = Followed(broker.servers, tmp_path, f"{TOPIC},missing")
    remedy = "Broker: Unknown topic or partition; make the topic, or correct source.path"
    with pytest.raises(TransientReadError) as refusal:
        followed.source.inspect()
    assert str(refusal.value) == f"topic missing: {remedy}"
    followed.poll()
    followed.source.settle([], lambda _: True)
    assert [(one.place, one.trouble) for one in followed.source.figures() if one.trouble] == [
        ("missing", remedy)
    ]
    broker.kill()
    with pytest.raises(TransientReadError, match=r"start the brokers, or correct source\.kafka\.servers"):
        followed.source.inspect()


@pytest.mark.skipif(SERVER is None, reason=NO_S3)
def test_a_broker_that_is_killed_delays_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_source, "RETRY_S", 0.1)
    monkeypatch.setattr(kafka_source, "REFRESH_S", 0.5)
    with durable_broker() as broker:
        make_topic(broker.servers, TOPIC, 4)
        followed, sender = Followed(broker.servers, tmp_path, TOPIC, range_messages=50), producer_of(broker)
        send((broker.servers, sender), TOPIC, range(400))
        followed.until(100)
        broker.kill()
        with pytest.raises(TransientReadError, match=broker.servers):
            followed.until_it_fails()
        broker.start()
        send((broker.servers, sender), TOPIC, range(400, 500))
        followed.patiently(lambda: len(followed.items()) >= 500)
        found = followed.items()
        followed.source.close()
    places = [item.attributes["path"] for item in found]
    assert len(places) == len(set(places))
    assert {item.item_id for item in found} == {f"i{n}" for n in range(500)}
    assert not followed.problems()


class Apart(Followed):
    """A source in a process of its own."""

    def begin(self) -> KafkaProcess:
        return KafkaProcess([self.topic], self.options, str(self.folder / "spool"), None)


def test_a_topic_that_is_made_anew_while_it_is_followed_is_reported_and_read_as_another(
    broker: Broker, tmp_path: Path
) -> None:
    """The client's library ends its process at that moment (librdkafka's issue 5093), and nobody else's."""
    followed = Apart(broker.servers, tmp_path, TOPIC)
    send((broker.servers, producer_of(broker)), TOPIC, range(8))
    followed.until(8)
    make_anew(broker)
    send((broker.servers, producer_of(broker)), TOPIC, range(100))  # it has as many messages again, and more
    with pytest.raises(TopicReplaced, match=r"source\.kafka\.generation: {photos: 1}"):
        followed.patiently(lambda: False)
    assert len(followed.items()) == 8
    followed.source.close()
    followed.options = replace(followed.options, generation=1)
    followed.source = followed.begin()
    followed.patiently(lambda: len(followed.items()) >= 108)
    places = [item.attributes["path"] for item in followed.items()[8:]]
    assert len(places) == len(set(places)) == 100
    followed.source.close()


def test_a_reader_that_is_killed_goes_on_where_the_ledger_says(broker: Broker, tmp_path: Path) -> None:
    followed = Apart(broker.servers, tmp_path, TOPIC, range_messages=20)
    send((broker.servers, producer_of(broker)), TOPIC, range(400))
    followed.until(100)
    followed.source.settle([followed.refs[-1].stamp], lambda _: False)
    assert sum(figures.lag for figures in followed.source.figures()) >= 300
    pid = followed.source.pid
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TransientReadError, match="signal 9"):
        followed.until_it_fails()
    followed.patiently(lambda: len(followed.items()) >= 400)
    places = [item.attributes["path"] for item in followed.items()]
    assert len(places) == len(set(places)) == 400
    assert followed.source.pid != pid
    followed.source.close()


def test_a_reader_that_is_killed_as_it_starts_comes_again_with_the_first_poll(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would take the driver with it, which is what starts it."""
    start = subprocess.Popen

    def killed(*arguments: Any, **options: Any) -> Any:
        child = start(*arguments, **options)
        child.kill()
        return child

    send((broker.servers, producer_of(broker)), TOPIC, range(8))
    monkeypatch.setattr(subprocess, "Popen", killed)
    followed = Apart(broker.servers, tmp_path, TOPIC)
    monkeypatch.undo()
    assert len(followed.until(8)) == 8
    followed.source.close()


def test_transactions_are_read_once_they_are_committed(broker: Broker, tmp_path: Path) -> None:
    """Tansu leaves the offsets of markers out, as Kafka does; aborted ones: test_transactions.py."""
    followed = Followed(broker.servers, tmp_path, TOPIC, gaps="expect")
    sender = Producer({"bootstrap.servers": broker.servers, "log_level": 0, "transactional.id": "one"})
    sender.init_transactions(10)
    for numbers in (range(4), range(4, 8)):
        sender.begin_transaction()
        send((broker.servers, sender), TOPIC, numbers, partition=0)
        if numbers.start:
            followed.polls(3)
            assert len(followed.items()) == 4
        sender.commit_transaction(10)
        followed.until(numbers.stop)
    assert [item.attributes["path"] for item in followed.items()] == [
        f"{TOPIC}/0/{offset}" for offset in (0, 1, 2, 3, 5, 6, 7, 8)
    ]
    assert followed.options.client["isolation.level"] == "read_committed"
    assert not followed.problems()
    followed.source.close()


def make_anew(broker: Broker) -> None:
    admin = AdminClient({"bootstrap.servers": broker.servers, "log_level": 0})
    admin.delete_topics([TOPIC])[TOPIC].result(10)
    make_topic(broker.servers, TOPIC, 4)


def test_a_topic_that_was_deleted_and_made_anew_is_known_by_its_id(broker: Broker, tmp_path: Path) -> None:
    followed = Followed(broker.servers, tmp_path, TOPIC)
    send((broker.servers, producer_of(broker)), TOPIC, range(8))
    followed.until(8)
    followed.source.close()  # while the driver is away: clients of a topic that is deleted crash (librdkafka #5093)
    make_anew(broker)
    send((broker.servers, producer_of(broker)), TOPIC, range(100))  # it has as many messages again, and more
    followed.source = followed.begin()
    with pytest.raises(TopicReplaced, match="made anew"):
        followed.until_it_fails()
    followed.source.close()
