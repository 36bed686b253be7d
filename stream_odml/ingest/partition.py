"""One partition of a log: its messages in order, cut into ranges by count, bytes, age and meaning.

Invariant: the ranges that come out are contiguous from where it began, and end before and after what acts on all that
came earlier: messages that erase, and control messages. No broker and no file is known here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from stream_odml.ingest.kafka_options import KafkaOptions
from stream_odml.ingest.landing import check_task
from stream_odml.ingest.message_range import Message, Range, erased_by, erases

MAX_ERASED = 200
"""Items that one range erases at most: each is a row of the ledger, written before the range lands."""


QUIET_S = 0.1
"""Without a message, at the end of a partition, after which those that came after a pause wait for no more."""


@dataclass(frozen=True)
class Closed:
    """A range that is complete, and what it does: nothing more, erase items, or close a task."""

    about: Range
    messages: Sequence[Message] = ()
    erases: tuple[str, ...] = ()
    task: str | None = None


@dataclass
class Partition:
    """Messages taken so far; `next` is the offset that is wanted next, `start` that of the open range."""

    topic: str
    number: int
    start: int
    options: KafkaOptions
    next: int = -1
    generation: int = 0
    """Of the topic."""
    low: int = 0
    """The lowest offset that the broker has, as far as it was asked."""
    bytes: int = 0
    """Of the open range."""
    closes: str | None = None
    """A task that a control message at `next` closes: nothing is taken until it is released."""
    control_ms: int = 0
    """When that message was sent."""
    _messages: list[Message] = field(default_factory=list)
    _opened: float | None = None
    _erasing: bool = False
    _is_at_end: bool = False
    _last: float = 0.0
    """When the last message was taken."""
    _closed_at: float = -math.inf
    """When a range was closed last because it was due."""

    def __post_init__(self) -> None:
        self.next = max(self.next, self.start)

    def take(self, message: Message, now: float) -> Iterator[Closed]:
        """Take the next message; yields ranges that it completes. One that was taken before is passed over."""
        if self.closes is not None or message.offset < self.next:
            return
        if (task := self._task(message)) is not None:
            self.next = message.offset
            yield from self.close()
            self.closes, self.control_ms = task, message.time_ms
            return
        erasing = erases(message, self.options)
        if self._messages and (erasing != self._erasing or (erasing and len(self._messages) >= MAX_ERASED)):
            yield from self.close()
        if not self._messages:
            self._opened, self._erasing = now, erasing
        self._messages.append(message)
        self._last, self._is_at_end = now, False
        self.bytes += _size(message)
        self.next = message.offset + 1
        if len(self._messages) >= self.options.range_messages or self.bytes >= self.options.range_bytes:
            yield from self.close()

    def reached(self, offset: int, now: float) -> None:
        """Note that the broker has nothing more below this offset: what lies between is a gap. One behind the last
        message, as an aborted transaction leaves, is a range like others: else it waits for the next message."""
        if self.closes is None:
            if offset > self.next and self._opened is None:
                self._opened = now
            self.next = max(self.next, offset)
            self._is_at_end = True

    def lost(self, low: int) -> Iterator[Closed]:
        """Yield what is known to be gone, as the broker has nothing any more below `low`."""
        self.low = max(self.low, low)
        if self.next < low and self.closes is None:
            self.next = low
            yield from self.close()

    def due(self, now: float) -> bool:
        """Return whether the open range is to be closed: it is old enough, or has all that came after a pause."""
        if self._opened is None:
            return False
        is_due = now - self._opened >= self.options.range_s or self.waits_s(now) == 0
        if is_due:
            self._closed_at = now
        return is_due

    def waits_s(self, now: float) -> float:
        """Return seconds until what came after a pause is closed, if nothing more comes; infinite without such."""
        # None is closed more often than one may be open, as each is a row of the ledger.
        is_fresh = now - self._closed_at >= self.options.range_s
        if self._opened is None or not self._is_at_end or not is_fresh:
            return math.inf
        return max(0.0, self._last + QUIET_S - now)

    def close(self) -> Iterator[Closed]:
        """Complete the open range, if there is anything in it."""
        if self.next > self.start:
            about = self.range(self.start, self.next)
            erases = erased_by(self._messages, self.options) if self._erasing else ()
            yield Closed(about, tuple(self._messages), erases)
        self.start, self.bytes, self._messages = self.next, 0, []
        self._opened, self._erasing = None, False

    def release(self) -> Closed:
        """Let the control message close its task, and go on behind it."""
        closed = Closed(self.range(self.next, self.next + 1), task=self.closes)
        self.closes, self.start, self.next = None, self.next + 1, self.next + 1
        return closed

    def range(self, start: int, end: int) -> Range:
        """Return a range of this partition."""
        return Range(self.topic, self.number, start, end, self.low, self.generation)

    def _task(self, message: Message) -> str | None:
        """Return the task that a control message closes; one with a name that no task can have is a plain message."""
        try:
            task = (message.header(self.options.task_header) or b"").decode()
            return task if task and check_task(task) else None
        except ValueError:
            return None


def _size(message: Message) -> int:
    headers = sum(len(name) + len(value or b"") for name, value in message.headers)
    return len(message.value or b"") + len(message.key or b"") + headers
