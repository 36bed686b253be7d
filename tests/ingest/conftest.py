"""A mock cluster of Kafka brokers for the tests of a module, and what follows topics of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer

from tests.ingest.followed import Followed
from tests.ingest.kafka_broker import mock_broker


@pytest.fixture(scope="module")
def broker() -> Iterator[tuple[str, Producer]]:
    with mock_broker() as made:
        yield made


@pytest.fixture
def follow(broker: tuple[str, Producer], tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Follow the topic of the test's name, or several that are named and made."""
    made: list[Followed] = []
    stem = request.node.name.replace("test_", "")[:60]

    def start(*names: str, **options: Any) -> Followed:
        topics = [f"{stem}-{name}" for name in names]
        for topic in topics:
            broker[1].list_topics(topic, timeout=60)  # makes it
        made.append(Followed(broker[0], tmp_path, ",".join(topics) or stem, **options))
        return made[-1]

    yield start
    for followed in made:
        followed.source.close()
