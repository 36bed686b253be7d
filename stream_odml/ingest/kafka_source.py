"""Follow the topics of a Kafka cluster: ranges of each partition are copied into the root's spool, each is a shard.

Protects: no consumer group decides what is read. The ledger says how far each partition was read; from there it is
read by assignment, in order, and each range becomes a file before anybody hears of it.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from confluent_kafka import KafkaError, KafkaException, TopicPartition

from stream_odml.ingest.kafka_brokers import ASK_S, Brokers, PublishedOffsets, words_of
from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.message_range import Message
from stream_odml.ingest.message_values import decoder_of
from stream_odml.ingest.partition import Closed, Partition
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import MAX_NEW, WHOLE_TOPIC, LogFigures
from stream_odml.ingest.spool import Spool
from stream_odml.ingest.task_closings import TaskClosings
from stream_odml.ingest.topic_position import Key, Stamp, TopicPosition, TopicReplaced, stamps_of

log = logging.getLogger(__name__)
FETCH = 2000
FETCH_S = 0.05
POLL_S = 0.5
"""Longest that one poll reads."""
REFRESH_S, RETRY_S = 10.0, 2.0
"""Between two looks for new partitions, and while the brokers are away."""
STALL_S = 30.0
"""Seconds of reading without one of the messages that a partition has, after which that is trouble."""
SPOOL_S = 30.0
OPEN_BYTES = 64 << 20
"""Bytes of all open ranges, above which the largest is closed."""


class KafkaSource:
    """A `LogSource`, `Inspectable`: all partitions of `topics`. Its position is the ledger's; what it holds in memory
    can be lost at any time.

    Raises ValueError for options that the client does not know, and for a decoder or schemas that cannot be used.
    """

    def __init__(self, topics: Sequence[str], options: KafkaOptions, spool: Spool) -> None:
        try:
            decoder_of(options.format)
        except Exception as error:
            # The user's code; raised now, before ranges are copied that nothing can decode.
            raise ValueError(f"kafka: value or schemas cannot be used: {error}") from error
        self.topics, self.options = tuple(topics), options
        self._spool = spool
        self._brokers = Brokers(options, self._on_error)
        self._consumer = self._brokers.consumer
        self._parts: dict[Key, Partition] = {}
        self._positions: dict[str, TopicPosition] = {}
        """Of the topics that are read."""
        self._trouble = ""
        """Of the brokers, or of the spool: nothing is read."""
        self._halted: dict[str, str] = {}
        """Topics of which some partitions are not read, and why: the others go on."""
        self._replaced: dict[str, TopicReplaced] = {}
        self._failing: dict[Key, str] = {}
        """What the client last said of a partition, until it gives more of it."""
        self._reading_s = 0.0
        self._moved: dict[Key, float] = {}
        """For each partition, `_reading_s` when it last had a message, or none was left."""
        self._closed: deque[Closed] = deque()
        """Ranges that are complete and not in the spool yet."""
        self._ready: list[ShardRef] = []
        self._sent: dict[Key, deque[tuple[str, int]]] = {}
        """Shards that were returned, by id, with the offset at which each begins, until the ledger has them."""
        self._ends: dict[Key, int] = {}
        self._lost: dict[Key, int] = {}
        self._closings = TaskClosings(self._brokers)
        self._group = PublishedOffsets(self._consumer, options.group)
        self._figures: tuple[LogFigures, ...] = ()
        self._refresh_due = self._spool_due = 0.0
        self._spool_bytes = 0
        self._is_stale = True
        """Whether the consumer has to be assigned where to read."""

    # -- the contract of a source ---------------------------------------------------------------------------------

    def poll(self, known: Iterable[str]) -> list[ShardRef]:
        """See `Source`. Order: that of offsets in a partition. Raises TransientReadError, TopicReplaced."""
        trouble: Exception | None = None
        try:
            self._read(known)
        except KafkaException as error:
            self._note(words_of(error.args[0]))
        except OSError as error:  # the spool's disk or store: what is complete is kept, and written next time
            trouble = TransientReadError(f"{self._spool.place} cannot be written now: {error}")
        trouble = trouble or next(iter(self._replaced.values()), None)
        ready, self._ready = self._ready[:MAX_NEW], self._ready[MAX_NEW:]
        if not ready and (trouble is not None or self._trouble):
            raise trouble or TransientReadError(f"kafka {self.options.servers}: {self._trouble}")
        for ref in ready:
            stamp = Stamp.of(ref.stamp)
            assert stamp is not None
            self._sent.setdefault((stamp.topic, stamp.partition), deque()).append((ref.shard_id, stamp.start))
        return ready

    def settle(self, waiting: Collection[str], is_ledgered: Callable[[str], bool]) -> None:
        """Publish what is searchable under the consumer group."""
        behind: dict[Key, int] = {}
        for stamp in stamps_of(waiting, self._positions):
            if stamp.generation == self._positions[stamp.topic].generation:
                key = stamp.topic, stamp.partition
                behind[key] = min(stamp.start, behind.get(key, stamp.start))
        self._brokers.look(self._parts)
        figures = [LogFigures(topic, WHOLE_TOPIC, 0, 0, 0, why) for topic, why in self._halted.items()]
        for key, part in self._parts.items():
            sent = self._sent.get(key, deque())
            while sent and is_ledgered(sent[0][0]):
                sent.popleft()
            done = min(part.start, behind.get(key, part.start), sent[0][1] if sent else part.start)
            known = self._brokers.cached_end(key), self._brokers.ends.get(key, 0)
            self._ends[key] = max(self._ends.get(key, 0), part.next, *known)
            lag, lost = self._ends[key] - done, self._lost.get(key, 0)
            risk = self._brokers.retention.at_risk(key, part.next, self._ends[key])
            keeps = self._brokers.retention.keeps(key[0])
            warning = (
                f"{risk} messages are not read and are deleted soon: let its topic keep them longer ({keeps})"
            ) * bool(risk)
            figures.append(LogFigures(*key, done, lag, lost, self._trouble_of(key, part), risk, warning))
        self._figures = tuple(figures)
        self._group.publish(figures)

    def figures(self) -> Sequence[LogFigures]:
        return self._figures

    def inspect(self) -> str:
        try:
            return "; ".join(self._brokers.described(topic) for topic in self.topics)
        except KafkaException as error:
            self._note(words_of(error.args[0]))
            raise TransientReadError(f"kafka {self.options.servers}: {self._trouble}") from error
        except LookupError as error:
            raise TransientReadError(str(error)) from error

    def close(self) -> None:
        """Leave the brokers."""
        self._brokers.close()

    # -- reading --------------------------------------------------------------------------------------------------

    def _read(self, known: Iterable[str]) -> None:
        deadline = time.monotonic() + POLL_S
        self._close_due(time.monotonic())
        self._write()
        self._refresh(known)
        while self._parts and not self._full() and len(self._ready) < MAX_NEW:
            if self._is_stale:
                self._assign()
            # Until each message is taken: whatever goes wrong, it is read again from where its partition is.
            self._is_stale = True
            began = time.monotonic()
            found = self._consumer.consume(FETCH, timeout=FETCH_S)
            now, is_moved = time.monotonic(), False
            self._reading_s += now - began
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
            self._moved[key] = self._reading_s
            self._failing.pop(key, None)
            self._closed.extend(part.take(_message(found), now))
            return part.closes is not None
        elif error.code() == KafkaError._PARTITION_EOF:
            self._moved[key] = self._reading_s
            self._failing.pop(key, None)
            part.reached(found.offset(), now)
            self._ends[key] = found.offset()
        elif error.code() in (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE):
            self._out_of_range(key, part)
            return True
        else:
            self._failing[key] = error.str()
        return False

    def _out_of_range(self, key: Key, part: Partition) -> None:
        """Note why the broker does not have what is wanted: it was deleted by now, or was never there."""
        mark = self._brokers.marks([key])[key]
        if isinstance(mark, str):
            self._failing[key] = mark
        elif part.next > mark[1]:
            error = TopicReplaced(
                f"{key[0]}/{key[1]} ends at offset {mark[1]}, but was read up to {part.next}: the topic lost "
                f"messages or was made anew; {self._positions[key[0]].remedy(key[0])}"
            )
            self._replace(key[0], error)
        else:
            self._behind(key, part, mark[0])

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
            ref = self._spool.put(closed, self.options.format, self._positions[closed.about.topic].topic_id)
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

    def _release(self) -> bool:
        """Let the next control message close its task, if all that was sent before it is read."""
        key = None if self._halted else self._closings.ready(self._parts, self._ends)
        if key is None:
            return False
        for part in self._parts.values():
            self._closed.extend(part.close())
        self._closed.append(self._parts[key].release())
        return True

    # -- topics and partitions ------------------------------------------------------------------------------------

    def _refresh(self, known: Iterable[str]) -> None:
        """Look for topics and partitions that are new, now and then."""
        now = time.monotonic()
        if now < self._refresh_due:
            return
        timeout_s = 1.0 if self._trouble else ASK_S
        self._refresh_due = now + RETRY_S
        halted, new = {topic: str(error) for topic, error in self._replaced.items()}, dict[str, list[Key]]()
        for topic in self.topics:
            if topic not in halted:
                try:
                    listed = self._brokers.partitions(topic, timeout_s)
                    new[topic] = [key for key in listed if key not in self._parts]
                except LookupError as error:
                    halted[topic] = str(error)
        self._halted = halted
        ids = self._brokers.topic_ids(topic for topic, keys in new.items() if keys or self._id_of(topic))
        stamps = list(stamps_of(known, self.topics)) if any(new.values()) else []
        for topic, keys in new.items():
            try:
                if keys:
                    self._begin(topic, keys, TopicPosition.of(topic, stamps, self.options, self.topics), ids)
                else:
                    self._positions[topic].check_id(topic, ids.get(topic, ""))
            except TopicReplaced as error:
                self._replace(topic, error)
        self._trouble = self._brokers.refused = ""
        is_whole = self._halted.keys() <= self._replaced.keys()
        self._refresh_due = now + (REFRESH_S if is_whole else RETRY_S)

    def _id_of(self, topic: str) -> str:
        return self._positions[topic].topic_id if topic in self._positions else ""

    def _replace(self, topic: str, error: TopicReplaced) -> None:
        """Read no more of a topic that is another one now; the others go on."""
        self._replaced[topic], self._halted[topic], self._is_stale = error, str(error), True

    def _begin(self, topic: str, new: Sequence[Key], position: TopicPosition, ids: Mapping[str, str]) -> None:
        """Go on where the ledger says, with what lies in the spool, or begin."""
        before = self._id_of(topic) or position.topic_id
        position = replace(position, topic_id=before)
        if before and topic not in ids:
            self._halted[topic] = (
                f"topic {topic}: its brokers do not say whether it is still the one that was read"
            )
            return
        position.check_id(topic, ids.get(topic, ""))
        marks = self._brokers.marks(new)
        away = [f"{topic}/{number}: {mark}" for (_, number), mark in marks.items() if isinstance(mark, str)]
        is_begun = position.is_begun or topic in self._positions
        if away:
            self._halted[topic] = "; ".join(away)
            if not is_begun:  # else a partition that is begun later would be taken for one that is new
                return
        self._positions[topic] = replace(position, topic_id=ids.get(topic) or before)
        names = self._spool.names()
        for key, mark in marks.items():
            if not isinstance(mark, str):
                # All of a partition that comes later is wanted: it was not there when reading began.
                first = 0 if is_begun else mark[self.options.start == "latest"]
                self._begin_partition(key, mark[0], first, names)
        self._is_stale = True

    def _begin_partition(self, key: Key, low: int, first: int, names: Sequence[str]) -> None:
        position = self._positions[key[0]]
        start = position.offsets.get(key[1], first)
        part = Partition(*key, start, self.options, generation=position.generation, low=low)
        while left := self._spool.left(names, part.range(part.start, part.start), position.topic_id):
            self._ready.append(left[0])
            part.start = part.next = left[1]
        if key[1] not in position.offsets and part.start == first:
            # An empty range, so that the ledger says where reading began.
            self._closed.append(Closed(part.range(first, first)))
        self._parts[key], self._moved[key] = part, self._reading_s
        self._behind(key, part, low)

    def _assign(self) -> None:
        """Let the consumer read all partitions from where each is; not those that wait at a control message."""
        read = ((key, part) for key, part in self._parts.items() if key[0] not in self._replaced)
        self._consumer.assign([TopicPartition(*key, part.next) for key, part in read if part.closes is None])

    # -- people ---------------------------------------------------------------------------------------------------

    def _on_error(self, text: str) -> None:
        """Note what the client cannot fix."""
        self._trouble = text
        self._refresh_due = min(self._refresh_due, time.monotonic() + RETRY_S)

    def _note(self, failure: str) -> None:
        """Keep why brokers cannot be asked: that they refuse us, if they said so since they were asked."""
        if not self._parts:
            self._consumer.poll(0)  # calls `_on_error`; nothing is assigned, so no message is lost by it
        self._trouble = self._brokers.refused or failure

    def _trouble_of(self, key: Key, part: Partition) -> str:
        """Return why messages of a partition do not come, where the broker has some; empty where all is well."""
        if part.closes is not None:
            waits = ", ".join(sorted(self._halted))
            return f"task {part.closes} is closed once {waits} can be read" if waits else ""
        if part.next >= self._ends[key] and key not in self._brokers.silent:
            self._moved[key] = self._reading_s
        for said in (self._failing, self._brokers.silent, self._closings.failing):
            if key in said:
                return said[key]
        is_stalled = self._reading_s - self._moved[key] > STALL_S
        return f"its broker sends none of {self._ends[key] - part.next} messages" if is_stalled else ""


def _message(found: Any) -> Message:
    try:
        headers = tuple(found.headers() or ())
    except UnicodeDecodeError:  # without a class it is quarantined, with its offset
        headers = ()
    return Message(found.offset(), found.timestamp()[1], found.key(), found.value(), headers)
