"""Offsets that are searchable, published under a consumer group: for people's lag tools, never read back."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable

from confluent_kafka import Consumer, KafkaException, TopicPartition

from stream_odml.ingest.sources import LogFigures
from stream_odml.ingest.topic_position import Key

log = logging.getLogger(__name__)
PUBLISH_S = 1.0


class PublishedOffsets:
    """What was published under a group; nothing where the group has no name."""

    def __init__(self, consumer: Consumer, group: str) -> None:
        self._consumer, self._group = consumer, group
        self._published: dict[Key, int] = {}
        self._due = 0.0

    def publish(self, figures: Iterable[LogFigures]) -> None:
        """Publish what has changed, at most once a second."""
        now = time.monotonic()
        if not self._group or now < self._due:
            return
        self._due = now + PUBLISH_S
        done = {(one.topic, one.partition): one.searchable for one in figures if one.is_partition}
        changed = {key: offset for key, offset in done.items() if self._published.get(key) != offset}
        if changed:
            offsets = [TopicPartition(*key, offset) for key, offset in changed.items()]
            try:
                self._consumer.commit(offsets=offsets, asynchronous=True)
                self._published |= changed
            except KafkaException as error:
                log.warning("offsets cannot be published now: %s", error)
