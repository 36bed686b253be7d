"""The brokers of a Kafka cluster: the client that reads, and what brokers say of topics and partitions when asked.

Protects: a partition whose broker does not answer costs its own answer, never that of another one.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.kafka_retention import Retention
from stream_odml.ingest.sources import LogFigures
from stream_odml.ingest.topic_position import NO_ID, Key

log = logging.getLogger(__name__)
client_log = logging.getLogger(f"{__name__}.client")
PUBLISH_S = 1.0
ASK_S = 5.0
END_S = 8.0
"""Longest that answers are waited for at the end; each was asked with a limit below this."""
ID_S = 5.0
"""Longest that a broker has to tell a topic's id; some never answer that."""
LOOK_S = 5.0
"""Between two looks at where partitions end."""
ASKED_AT_ONCE = 32
"""Partitions that are asked about at the same time."""
REPEAT_S, MAX_SAID = 60.0, 100
_REFUSALS = (KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED)
_NOT_ANSWERED = "start the brokers, or correct source.kafka.servers; they are asked again"
_REMEDIES = {
    KafkaError.UNKNOWN_TOPIC_OR_PART: "make the topic, or correct source.path",
    KafkaError.TOPIC_EXCEPTION: "correct source.path",
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "give this user the right to read and to describe it",
    KafkaError._TRANSPORT: _NOT_ANSWERED,
    KafkaError._RESOLVE: _NOT_ANSWERED,
    KafkaError._TIMED_OUT: _NOT_ANSWERED,
    KafkaError._ALL_BROKERS_DOWN: _NOT_ANSWERED,
}
"""What to do about an error of a broker, which says itself no more than what was not possible."""


class _SaidOnce(logging.Filter):
    """Lets a line of the client pass once a minute: it says the same at each try, many times a second."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line, now = re.sub(r"\d+", "", record.getMessage()), time.monotonic()
        if now - self._said.get(line, -math.inf) < REPEAT_S:
            return False
        if len(self._said) > MAX_SAID:
            self._said.clear()
        self._said[line] = now
        return True


class Brokers:
    """The clients of one cluster. Raises ValueError for options that the client does not know."""

    def __init__(self, options: KafkaOptions, on_error: Callable[[str], None]) -> None:
        self._options, self._tell = options, on_error
        self.refused = ""
        """Why the brokers do not let us in: what else fails then follows from it."""
        self.ends: dict[Key, int] = {}
        """Where partitions end, as the last look found."""
        self.silent: dict[Key, str] = {}
        """Partitions whose broker did not say so, and why."""
        self.retention = Retention()
        self._looks: dict[Key, Future[Any]] = {}
        self._look_due = 0.0
        client_log.filters[:] = [_SaidOnce()]
        try:
            self.consumer = Consumer({**options.client, "error_cb": self._on_error}, logger=client_log)
        except KafkaException as error:
            raise ValueError(f"kafka: {error.args[0].str()}") from error
        self._kept: AdminClient | None = None

    def close(self) -> None:
        """Leave the brokers."""
        # A client that ends while it waits takes this process with it.
        wait((*self._looks.values(), *self.retention.pending), END_S)
        self.consumer.close()

    def partitions(self, topic: str, timeout_s: float = ASK_S) -> list[Key]:
        """Return the partitions of a topic. Raises KafkaException, LookupError for a topic that cannot be read."""
        about = self.consumer.list_topics(topic, timeout=timeout_s).topics[topic]
        if about.error is not None:
            raise LookupError(words_of(about.error))
        return [(topic, number) for number in sorted(about.partitions)]

    def marks(self, keys: Collection[Key]) -> dict[Key, tuple[int, int] | str]:
        """Return the lowest offset and the end of each partition, asked now, or why its broker does not say."""
        with ThreadPoolExecutor(min(ASKED_AT_ONCE, max(1, len(keys)))) as pool:
            return dict(zip(keys, pool.map(self._mark, keys), strict=True))

    def _mark(self, key: Key) -> tuple[int, int] | str:
        try:
            low, high = self.consumer.get_watermark_offsets(TopicPartition(*key), timeout=ASK_S)
        except KafkaException as error:
            return str(error.args[0].str())
        return int(low), int(high)

    def described(self, topic: str) -> str:
        """Return how much a topic holds. Raises KafkaException, LookupError where a part of it cannot be read."""
        try:
            marks, count = self.marks(self.partitions(topic)), 0
        except LookupError as error:
            raise LookupError(f"topic {topic}: {error}") from None
        for (_, number), mark in marks.items():
            if isinstance(mark, str):
                raise LookupError(f"{topic}/{number}: {mark}")
            count += mark[1] - mark[0]
        return f"topic {topic} has {len(marks)} partitions with {count} messages"

    def cached_end(self, key: Key) -> int:
        """Return where a partition ends as the last answer to a reader said; below 0 before one came."""
        return int(self.consumer.get_watermark_offsets(TopicPartition(*key), cached=True)[1])

    def look(self, keys: Collection[Key]) -> None:
        """Keep `ends`, `silent` and `retention` of these partitions up to date, in the background: never waits."""
        self.retention.look(self._admin(), keys)
        for key in [key for key, look in self._looks.items() if look.done()]:
            look = self._looks.pop(key)
            if (error := look.exception()) is None:
                self.silent.pop(key, None)
                self.ends[key] = int(look.result().offset)
            else:
                self.silent[key] = _text(error)
        now = time.monotonic()
        if self._looks or now < self._look_due:
            return
        self._look_due = now + LOOK_S
        end = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        asked = {TopicPartition(*key): end for key in keys}
        if asked:
            looks = self._admin().list_offsets(
                asked, request_timeout=ASK_S, isolation_level=IsolationLevel.READ_COMMITTED
            )
            self._looks = {(place.topic, place.partition): look for place, look in looks.items()}

    def topic_ids(self, topics: Iterable[str]) -> Mapping[str, str]:
        """Return the broker's ids of topics; empty where it has none. Those that it does not tell now are left out."""
        asked = list(topics)
        if not asked:
            return {}
        answers = self._admin().describe_topics(TopicCollection(asked), request_timeout=ID_S)
        found, deadline = {}, time.monotonic() + ID_S
        for topic, answer in answers.items():
            try:
                topic_id = str(answer.result(max(0.0, deadline - time.monotonic())).topic_id or NO_ID)
                found[topic] = "" if topic_id == NO_ID else topic_id
            except (KafkaException, TimeoutError):
                continue
        return found

    def _admin(self) -> AdminClient:
        # Kept: a client that ends while it waits for an answer takes this process with it.
        if self._kept is None:
            options = {**self._options.options, "bootstrap.servers": self._options.servers}
            self._kept = AdminClient({**options, "client.id": "stream-odml"}, logger=client_log)
        return self._kept

    def _on_error(self, error: KafkaError) -> None:
        """Note what the client cannot fix; a connection that breaks is made again without us."""
        if error.code() in _REFUSALS:
            self.refused = f"{error.str()}; check source.kafka.options (sasl.*, ssl.*)"
        if error.fatal() or error.code() not in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
            self._tell(error.str())


def words_of(error: KafkaError) -> str:
    """Return what a broker or the client says, with what to do where that is known."""
    remedy = _REMEDIES.get(error.code())
    return f"{error.str()}; {remedy}" if remedy else str(error.str())


def _text(error: BaseException) -> str:
    first = error.args[0] if error.args else error
    return str(first.str()) if isinstance(first, KafkaError) else str(first)


class PublishedOffsets:
    """Offsets that are searchable, published under a consumer group: for people's lag tools, never read back. None are
    where the group has no name."""

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
