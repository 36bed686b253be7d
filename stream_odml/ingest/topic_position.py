"""What the ledger says of a topic: which topic of this name was read, and how far each partition of it.

Protects: a topic that was deleted and made anew is another one. Nothing of it is taken for read because one of the
same name was, and no other topic is read again because of it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from stream_odml.ingest.kafka_options import KafkaOptions

_STAMP = re.compile(r"kafka:([^:]*):(\d+):([^:]*):(\d+):(\d+)-(\d+)")


Key = tuple[str, int]
"""A topic, and one of its partitions."""
NO_ID = "A" * 22
"""What a broker without ids of topics, before Kafka 3.1, is shown to tell: 16 bytes of zero, in base64."""


class TopicReplaced(ValueError):
    """The topic is not the one that was read: its offsets name other messages now."""


class Stamp(NamedTuple):
    """What the ledger keeps of a range. `topic_id` is the broker's for this topic, empty where it has none."""

    topic: str
    generation: int
    topic_id: str
    partition: int
    start: int
    end: int

    def __str__(self) -> str:
        return "kafka:{}:{}:{}:{}:{}-{}".format(*self)

    @staticmethod
    def of(text: str) -> Stamp | None:
        """Return the stamp that this text is; None for a shard from elsewhere."""
        found = _STAMP.fullmatch(text)
        if found is None:
            return None
        topic, generation, topic_id, partition, start, end = found.groups()
        return Stamp(topic, int(generation), topic_id, int(partition), int(start), int(end))


def stamps_of(texts: Iterable[str], topics: Iterable[str]) -> Iterator[Stamp]:
    """Yield the stamps of these topics among all that the ledger knows."""
    wanted = frozenset(topics)
    for text in texts:
        stamp = Stamp.of(text)
        if stamp is not None and stamp.topic in wanted:
            yield stamp


@dataclass(frozen=True)
class TopicPosition:
    """How far a topic was read."""

    generation: int
    topic_id: str
    """The broker's id of what was read; empty where it told none."""
    offsets: Mapping[int, int]
    """By partition, the end of what was read."""
    is_begun: bool
    """Whether this topic, or an earlier one of its name, was read: then all that comes is wanted."""

    @staticmethod
    def of(
        topic: str, stamps: Iterable[Stamp], options: KafkaOptions, topics: Collection[str]
    ) -> TopicPosition:
        """Return the position of one of `topics`: that of its latest generation, or none yet of one that
        `options.generation` begins.

        Raises TopicReplaced where one number for several topics would have one of them read again.
        """
        own = [stamp for stamp in stamps if stamp.topic == topic]
        latest = max((stamp.generation for stamp in own), default=0)
        wanted = options.generation_of(topic)
        if own and wanted > latest and len(topics) > 1 and isinstance(options.generation, int):
            raise TopicReplaced(
                f"source.kafka.generation: {wanted} is for every topic, and {topic} was read as generation {latest}; "
                f"name the topic that was made anew, as in generation: {{{topic}: {wanted}}}: the others go on"
            )
        generation = max(wanted, latest)
        current = [stamp for stamp in own if stamp.generation == generation]
        offsets: dict[int, int] = {}
        for stamp in current:
            offsets[stamp.partition] = max(stamp.end, offsets.get(stamp.partition, 0))
        ids = {stamp.topic_id for stamp in current if stamp.topic_id not in ("", NO_ID)}
        return TopicPosition(generation, max(ids, default=""), offsets, bool(own))

    def check_id(self, topic: str, topic_id: str) -> None:
        """Raise TopicReplaced where the broker's id of the topic is another one than that which was read."""
        if self.topic_id and topic_id and topic_id != self.topic_id:
            raise TopicReplaced(
                f"topic {topic} was deleted and made anew: its id is {topic_id}, {self.topic_id} was read; "
                f"{self.remedy(topic)}"
            )

    def remedy(self, topic: str) -> str:
        """Return how a topic that was made anew is read."""
        return f"set source.kafka.generation: {{{topic}: {self.generation + 1}}} to read the new one from its start"
