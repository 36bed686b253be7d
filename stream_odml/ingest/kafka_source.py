"""Follow the topics of a Kafka cluster: ranges of each partition are copied into the root's spool, each is a shard.

Protects: no consumer group decides what is read. The ledger says how far each partition was read; from there it is
read by assignment, in order, and each range becomes a file before anybody hears of it.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from typing import Any

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.message_range import Message, Range
from stream_odml.ingest.message_values import decoder_of
from stream_odml.ingest.partition import Closed, Partition
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import MAX_NEW, LogFigures
from stream_odml.ingest.spool import Spool, Stamp, TopicReplaced, stamps_of

log = logging.getLogger(__name__)
client_log = logging.getLogger(f"{__name__}.client")
FETCH = 2000
FETCH_S = 0.05
POLL_S = 0.5
"""Longest that one poll reads."""
ASK_S = 5.0
ID_S = 5.0
"""Longest that a broker has to tell a topic's id; some never answer that."""
REFRESH_S, RETRY_S = 10.0, 2.0
"""Between two looks for new partitions, and while the brokers are away."""
SPOOL_S = 30.0
OPEN_BYTES = 64 << 20
"""Bytes of all open ranges, above which the largest is closed."""
PUBLISH_S = 1.0
REPEAT_S, MAX_SAID = 60.0, 100
_REFUSALS = (KafkaError._AUTHENTICATION, KafkaError._SSL, KafkaError.SASL_AUTHENTICATION_FAILED)
Key = tuple[str, int]


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


class KafkaSource:
    """All partitions of `topics`. Its position is the ledger's; what it holds in memory can be lost at any time.

    Raises ValueError for options that the client does not know, and for a decoder or schemas that cannot be used.
    """

    def __init__(
        self, topics: Sequence[str], options: KafkaOptions, spool: Spool, max_new: int = MAX_NEW
    ) -> None:
        try:
            decoder_of(options.format)
        except Exception as error:  # else it is frozen into every range that is copied
            raise ValueError(f"kafka: value or schemas cannot be used: {error}") from error
        self.topics, self.options, self.max_new = tuple(topics), options, max_new
        self._spool = spool
        client_log.filters[:] = [_SaidOnce()]
        try:
            self._consumer = Consumer({**options.client, "error_cb": self._on_error}, logger=client_log)
        except KafkaException as error:
            raise ValueError(f"kafka: {error.args[0].str()}") from error
        self._parts: dict[Key, Partition] = {}
        self._ids: dict[str, str] = {}
        self._trouble = ""
        self._refused = ""
        """Why the brokers do not let us in: what else fails then follows from it."""
        self._closed: deque[Closed] = deque()
        """Ranges that are complete and not in the spool yet."""
        self._ready: list[ShardRef] = []
        self._sent: dict[Key, deque[tuple[str, int]]] = {}
        """Shards that were returned, by id, with the offset at which each begins, until the ledger has them."""
        self._ends: dict[Key, int] = {}
        self._lost: dict[Key, int] = {}
        self._targets: dict[Key, dict[Key, int]] = {}
        """For each control message that waits, how far the other partitions are to be read before it counts."""
        self._published: dict[Key, int] = {}
        self._figures: tuple[LogFigures, ...] = ()
        self._refresh_due = self._spool_due = self._publish_due = 0.0
        self._spool_bytes = 0
        self._is_stale = True
        """Whether the consumer has to be assigned where to read."""
        self._replaced: TopicReplaced | None = None
        self._admin: AdminClient | None = None

    # -- the contract of a source ---------------------------------------------------------------------------------

    def poll(self, known: Collection[str]) -> list[ShardRef]:
        """See `Source`. Order: that of offsets in a partition. Raises TransientReadError, TopicReplaced."""
        trouble: Exception | None = self._replaced
        try:
            if self._replaced is None:
                self._read(known)
        except KafkaException as error:
            self._note(error.args[0].str())
        except TopicReplaced as error:
            trouble = self._replaced = error
        except OSError as error:  # the spool's disk or store: what is complete is kept, and written next time
            trouble = TransientReadError(f"{self._spool.place} cannot be written now: {error}")
        ready, self._ready = self._ready[: self.max_new], self._ready[self.max_new :]
        if not ready and (trouble is not None or self._trouble):
            raise trouble or TransientReadError(f"kafka {self.options.servers}: {self._trouble}")
        for ref in ready:
            stamp = Stamp.of(ref.stamp)
            assert stamp is not None
            self._sent.setdefault((stamp.topic, stamp.partition), deque()).append((ref.shard_id, stamp.start))
        return ready

    def settle(self, waiting: Collection[str], is_ledgered: Callable[[str], bool]) -> None:
        """See `LogSource`. Publishes what is searchable under the consumer group, for people's tools only."""
        behind: dict[Key, int] = {}
        for stamp in stamps_of(waiting, self.topics, self.options.generation):
            key = stamp.topic, stamp.partition
            behind[key] = min(stamp.start, behind.get(key, stamp.start))
        figures = []
        for key, part in self._parts.items():
            sent = self._sent.get(key, deque())
            while sent and is_ledgered(sent[0][0]):
                sent.popleft()
            done = min(part.start, behind.get(key, part.start), sent[0][1] if sent else part.start)
            _, high = self._consumer.get_watermark_offsets(TopicPartition(*key), cached=True)
            self._ends[key] = max(self._ends.get(key, 0), high, part.next)
            figures.append(LogFigures(*key, done, self._ends[key] - done, self._lost.get(key, 0)))
        self._figures = tuple(figures)
        self._publish()

    def figures(self) -> Sequence[LogFigures]:
        """See `LogSource`."""
        return self._figures

    def close(self) -> None:
        """Leave the brokers."""
        self._consumer.close()

    # -- reading --------------------------------------------------------------------------------------------------

    def _read(self, known: Collection[str]) -> None:
        deadline = time.monotonic() + POLL_S
        self._close_due(time.monotonic())
        self._write()
        self._refresh(known)
        while self._parts and not self._full() and len(self._ready) < self.max_new:
            if self._is_stale:
                self._assign()
            # Until each message is taken: whatever goes wrong, it is read again from where its partition is.
            self._is_stale = True
            found = self._consumer.consume(FETCH, timeout=FETCH_S)
            now, is_moved = time.monotonic(), False
            for one in found:
                is_moved |= self._take(one, now)
            self._close_due(now)
            is_moved |= self._release()
            self._is_stale = is_moved
            self._write()
            waits = min((part.waits_s(now) for part in self._parts.values()), default=math.inf)
            if now > deadline or (not found and waits > FETCH_S):
                break

    def _take(self, found: Any, now: float) -> bool:
        """Take one message or event; whether the consumer has to be assigned anew where to read."""
        key = found.topic(), found.partition()
        part, error = self._parts.get(key), found.error()
        if part is None:
            self._trouble = error.str() if error is not None else self._trouble
        elif error is None:
            self._trouble = ""
            self._closed.extend(part.take(_message(found), now))
            return part.closes is not None
        elif error.code() == KafkaError._PARTITION_EOF:
            part.reached(found.offset())
            self._ends[key] = found.offset()
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._out_of_range(key, part)
            return True
        else:
            self._trouble = error.str()
        return False

    def _out_of_range(self, key: Key, part: Partition) -> None:
        """The broker has not what is wanted: it was deleted by now, or was never there."""
        low, high = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=ASK_S)
        if part.next > high:
            raise TopicReplaced(
                f"{key[0]}/{key[1]} ends at offset {high}, but was read up to {part.next}: the topic lost messages or "
                f"was made anew; set source.kafka.generation: {self.options.generation + 1} to read it from its start"
            )
        self._behind(key, part, low)

    def _behind(self, key: Key, part: Partition, low: int) -> None:
        """Take note that a partition begins at `low` now. A fetch from below it fails, so no gap that is found between
        two messages is retention's."""
        if low > part.next:
            self._lost[key] = self._lost.get(key, 0) + low - part.next
            log.error("%s/%d: %d messages were deleted before they were read", *key, low - part.next)
        self._closed.extend(part.lost(low))

    def _close_due(self, now: float) -> None:
        for part in self._parts.values():
            if part.due(now):
                self._closed.extend(part.close())
        if sum(part.bytes for part in self._parts.values()) > OPEN_BYTES:
            self._closed.extend(max(self._parts.values(), key=lambda part: part.bytes).close())

    def _write(self) -> None:
        while self._closed:
            closed = self._closed[0]
            ref = self._spool.put(closed, self.options.format, self._ids[closed.about.topic])
            self._spool_bytes += ref.size_bytes
            self._ready.append(ref)
            self._closed.popleft()

    def _full(self) -> bool:
        now = time.monotonic()
        if now >= self._spool_due:
            self._spool_due = now + SPOOL_S
            self._spool_bytes = self._spool.size_bytes()
        is_full = self._spool_bytes >= self.options.max_spool_bytes
        if is_full:
            self._spool_due = min(self._spool_due, now + RETRY_S)
            self._trouble = (
                f"{self._spool.place} holds kafka.max_spool_bytes ({self.options.max_spool_bytes}); nothing is read "
                "until copies are learnt and store.keep_pushed_h has passed since; lower that, or raise this"
            )
        return is_full

    # -- control messages -----------------------------------------------------------------------------------------

    def _release(self) -> bool:
        """Let control messages close their tasks, in the order in which they were sent, each once all that was sent
        before it is read: every other partition is at its end of then, or waits at a control message of its own."""
        waits = {key: part for key, part in self._parts.items() if part.closes is not None}
        for key in waits:
            if key not in self._targets:
                self._targets[key] = {other: self._end_of(other) for other in self._parts if other != key}
        if not waits:
            return False
        key, part = min(waits.items(), key=lambda one: (one[1].control_ms, one[0]))
        targets = self._targets[key]
        if any(self._parts[other].next < end for other, end in targets.items() if other not in waits):
            return False
        for other in self._parts.values():
            self._closed.extend(other.close())
        self._closed.append(part.release())
        del self._targets[key]
        return True

    def _end_of(self, key: Key) -> int:
        """The end of a partition as the broker says now."""
        _, high = self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=ASK_S)
        return int(max(high, self._ends.get(key, 0)))

    # -- topics and partitions ------------------------------------------------------------------------------------

    def _refresh(self, known: Collection[str]) -> None:
        """Look for topics and partitions that are new, now and then."""
        now = time.monotonic()
        if now < self._refresh_due:
            return
        away = bool(self._trouble)
        self._refresh_due = now + RETRY_S
        listed = [key for topic in self.topics for key in self._listed(topic, 1.0 if away else ASK_S)]
        for topic in [topic for topic, topic_id in self._ids.items() if topic_id]:
            self._check_id(topic, self._ids[topic])
        new = [key for key in listed if key not in self._parts]
        if new:
            self._begin(new, list(stamps_of(known, self.topics, self.options.generation)))
            self._is_stale = True
        self._trouble = self._refused = ""
        self._refresh_due = now + REFRESH_S

    def _listed(self, topic: str, timeout_s: float) -> list[Key]:
        about = self._consumer.list_topics(topic, timeout=timeout_s).topics[topic]
        if about.error is not None:
            raise KafkaException(about.error)
        return [(topic, number) for number in sorted(about.partitions)]

    def _begin(self, new: Sequence[Key], stamps: Sequence[Stamp]) -> None:
        """Go on where the ledger says, with what lies in the spool, or begin."""
        positions: dict[Key, int] = {}
        for stamp in stamps:
            key = stamp.topic, stamp.partition
            positions[key] = max(stamp.end, positions.get(key, 0))
        begun = {topic for topic, _ in (*positions, *self._parts)}
        for topic in {topic for topic, _ in new}:
            was = next((s.topic_id for s in reversed(stamps) if s.topic == topic and s.topic_id), "")
            self._check_id(topic, self._ids.get(topic) or was)
        marks = {
            key: self._consumer.get_watermark_offsets(TopicPartition(*key), timeout=ASK_S) for key in new
        }
        names = self._spool.names()
        for key, (low, high) in marks.items():
            # All of a partition that comes later is wanted: it was not there when reading began.
            first = 0 if key[0] in begun else low if self.options.start == "earliest" else high
            part = Partition(*key, positions.get(key, first), self.options, low=low)
            while (left := self._spool.left(names, *key, self._ids[key[0]], part.start)) is not None:
                self._ready.append(left[0])
                part.start = part.next = left[1]
            if key not in positions and part.start == first:
                # An empty range, so that the ledger says where reading began.
                self._closed.append(Closed(Range(*key, first, first)))
            self._parts[key] = part
            self._behind(key, part, low)

    def _check_id(self, topic: str, before: str) -> None:
        now = self._topic_id(topic)
        if before and now and before != now:
            raise TopicReplaced(
                f"topic {topic} was deleted and made anew: its id is {now}, {before} was read; set "
                f"source.kafka.generation: {self.options.generation + 1} to read the new one from its start"
            )
        self._ids[topic] = now or before

    def _topic_id(self, topic: str) -> str:
        """The broker's id of a topic; empty where it has none, as brokers before Kafka 3.1."""
        try:
            # Kept: a client that ends while it waits for an answer takes this process with it.
            self._admin = self._admin or AdminClient(
                {
                    **self.options.options,
                    "bootstrap.servers": self.options.servers,
                    "client.id": "stream-odml",
                },
                logger=client_log,
            )
            asked = self._admin.describe_topics(TopicCollection([topic]), request_timeout=ID_S)[topic]
            return str(asked.result(ID_S).topic_id or "")
        except (KafkaException, TimeoutError):
            return ""

    def _assign(self) -> None:
        """Let the consumer read all partitions from where each is; not those that wait at a control message."""
        self._consumer.assign(
            [TopicPartition(*key, part.next) for key, part in self._parts.items() if part.closes is None]
        )

    # -- people ---------------------------------------------------------------------------------------------------

    def _on_error(self, error: KafkaError) -> None:
        """Note what the client cannot mend; a connection that breaks is made again without us."""
        if error.code() in _REFUSALS:
            self._refused = f"{error.str()}; check source.kafka.options (sasl.*, ssl.*)"
        if error.fatal() or error.code() not in (KafkaError._TRANSPORT, KafkaError._RESOLVE):
            self._trouble = error.str()
            self._refresh_due = min(self._refresh_due, time.monotonic() + RETRY_S)

    def _note(self, failure: str) -> None:
        """Keep why brokers cannot be asked: that they refuse us, if they said so since they were asked."""
        if not self._parts:
            self._consumer.poll(0)  # calls `_on_error`; nothing is assigned, so no message is lost by it
        self._trouble = self._refused or failure

    def _publish(self) -> None:
        now = time.monotonic()
        if not self.options.group or now < self._publish_due:
            return
        self._publish_due = now + PUBLISH_S
        done = {(one.topic, one.partition): one.searchable for one in self._figures}
        changed = {key: offset for key, offset in done.items() if self._published.get(key) != offset}
        if changed:
            offsets = [TopicPartition(*key, offset) for key, offset in changed.items()]
            try:
                self._consumer.commit(offsets=offsets, asynchronous=True)
                self._published |= changed
            except KafkaException as error:
                log.warning("offsets cannot be published now: %s", error)


def _message(found: Any) -> Message:
    try:
        headers = tuple(found.headers() or ())
    except UnicodeDecodeError:  # without a class it is quarantined, with its offset
        headers = ()
    return Message(found.offset(), found.timestamp()[1], found.key(), found.value(), headers)
