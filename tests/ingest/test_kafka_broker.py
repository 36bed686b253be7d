"""Topics of a real broker: it is killed, its topics are made anew, and partitions come later."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from stream_odml.ingest import kafka_source
from stream_odml.ingest.kafka_source import TopicReplaced
from stream_odml.ingest.reasons import TransientReadError
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
from tests.ingest.test_kafka_source import Followed, send

pytestmark = pytest.mark.skipif(BROKER is None, reason=NOT_CHECKED)
TOPIC = "photos"


@pytest.fixture
def broker() -> Iterator[Broker]:
    with memory_broker() as made:
        make_topic(made.servers, TOPIC, 4)
        yield made


def producer_of(broker: Broker) -> Producer:
    return Producer({"bootstrap.servers": broker.servers, "log_level": 0})


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
            followed.polls(200)
        broker.start()
        send((broker.servers, sender), TOPIC, range(400, 500))
        deadline = time.monotonic() + 60
        while len(followed.items()) < 500 and time.monotonic() < deadline:
            try:
                followed.poll()
            except TransientReadError:
                time.sleep(0.1)
        found = followed.items()
        followed.source.close()
    places = [item.attributes["path"] for item in found]
    assert len(places) == len(set(places))
    assert {item.item_id for item in found} == {f"i{n}" for n in range(500)}
    assert not followed.problems()


def test_a_topic_that_was_deleted_and_made_anew_is_known_by_its_id(broker: Broker, tmp_path: Path) -> None:
    followed = Followed(broker.servers, tmp_path, TOPIC)
    send((broker.servers, producer_of(broker)), TOPIC, range(8))
    followed.until(8)
    followed.source.close()  # while the driver is away: clients of a topic that is deleted crash (librdkafka #5093)
    admin = AdminClient({"bootstrap.servers": broker.servers, "log_level": 0})
    admin.delete_topics([TOPIC])[TOPIC].result(10)
    make_topic(broker.servers, TOPIC, 4)
    send((broker.servers, producer_of(broker)), TOPIC, range(100))  # it has as many messages again, and more
    followed.source = followed.begin()
    with pytest.raises(TopicReplaced, match="made anew"):
        followed.polls(3)
    followed.source.close()
