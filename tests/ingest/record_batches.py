"""As much of a Kafka broker as one partition with transactions needs: committed, aborted, with their markers.

The brokers that tests can start know no aborted ones: Tansu does not tell which they are, librdkafka's mock writes no
markers. The format: https://kafka.apache.org/protocol, and the record batch of version 2 (KIP-98).
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from confluent_kafka import KafkaError

from tests.ingest.wire_broker import API_VERSIONS, answering, versions

TOPIC = "photos"
FETCH, LIST_OFFSETS, METADATA = 1, 2, 3
KEYS = ((0, 3), (FETCH, 4), (LIST_OFFSETS, 2), (METADATA, 1), (API_VERSIONS, 3))
"""The newest version of each request that is answered; it takes a producer (0) for a broker that knows batches."""
TRANSACTIONAL, CONTROL = 0x10, 0x20
ABORT, COMMIT = 0, 1
MAX_WAIT_S = 0.1


@dataclass(frozen=True)
class Batch:
    """Messages of a producer from offset `first` on, with a header `class`; or a marker that ends its transaction."""

    first: int
    producer: int
    values: Sequence[bytes] = ()
    marker: int | None = None

    @property
    def end(self) -> int:
        """The offset after it."""
        return self.first + (1 if self.marker is not None else len(self.values))

    def encoded(self) -> bytes:
        """As it lies in a log."""
        if self.marker is None:
            attributes = TRANSACTIONAL
            records = [_record(n, b"", value, ((b"class", b"c"),)) for n, value in enumerate(self.values)]
        else:
            attributes = TRANSACTIONAL | CONTROL
            records = [_record(0, struct.pack(">hh", 0, self.marker), struct.pack(">hi", 0, 0), ())]
        body = struct.pack(
            ">hiqqqhii", attributes, len(records) - 1, 1000, 1000, self.producer, 0, 0, len(records)
        )
        body += b"".join(records)
        return (
            struct.pack(">qiibI", self.first, len(body) + 9, 0, 2, 0) + body
        )  # clients do not check the sum


def _record(delta: int, key: bytes, value: bytes, headers: Sequence[tuple[bytes, bytes]]) -> bytes:
    pairs = b"".join(_sized(name) + _sized(text) for name, text in headers)
    body = b"\0" + _varint(0) + _varint(delta) + _sized(key) + _sized(value) + _varint(len(headers)) + pairs
    return _varint(len(body)) + body


def _sized(data: bytes) -> bytes:
    return _varint(len(data)) + data


def _varint(number: int) -> bytes:
    rest, out = number << 1, b""  # zigzag, of what is not negative
    while rest > 0x7F:
        out, rest = out + bytes([rest & 0x7F | 0x80]), rest >> 7
    return out + bytes([rest])


@contextlib.contextmanager
def broker_of(log: Sequence[Batch], aborted: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Yield the address of a broker of one topic with one partition. `aborted`: producer and begin of a transaction."""

    def answer(key: int, body: bytes, port: int) -> bytes:
        return versions(KEYS) if key == API_VERSIONS else _BODIES[key](body, port, log, aborted)

    with answering(answer) as address:
        yield address


def _metadata(_: bytes, port: int, *__: object) -> bytes:
    brokers = struct.pack(">ii", 1, 0) + _text("127.0.0.1") + struct.pack(">ih", port, -1)
    partition = struct.pack(">hiiiiii", 0, 0, 0, 1, 0, 1, 0)
    return brokers + struct.pack(">iih", 0, 1, 0) + _text(TOPIC) + struct.pack(">bi", 0, 1) + partition


def _offsets(body: bytes, _: int, log: Sequence[Batch], __: object) -> bytes:
    (time_ms,) = struct.unpack(">q", body[-8:])
    offset = log[-1].end if time_ms == -1 else 0
    return struct.pack(">ii", 0, 1) + _text(TOPIC) + struct.pack(">iihqq", 1, 0, 0, -1, offset)


def _fetched(body: bytes, _: int, log: Sequence[Batch], aborted: Sequence[tuple[int, int]]) -> bytes:
    _, _, _, _, isolation, topics = struct.unpack(">iiiibi", body[:21])
    assert isolation == 1, "not read_committed"
    found, end = b"", log[-1].end
    error = wanted = 0
    if topics:
        (wanted,) = struct.unpack(">q", body[-12:-4])
        found = b"".join(batch.encoded() for batch in log if batch.end > wanted)
        error = KafkaError.OFFSET_OUT_OF_RANGE if wanted > end else 0
    if not found:
        threading.Event().wait(MAX_WAIT_S)
    reported = [one for one in aborted if found]
    rows = b"".join(struct.pack(">qq", *one) for one in reported)
    place = struct.pack(">iihqqi", 1, 0, error, end, end, len(reported)) + rows
    return struct.pack(">ii", 0, 1) + _text(TOPIC) + place + struct.pack(">i", len(found)) + found


def _text(text: str) -> bytes:
    return struct.pack(">h", len(text)) + text.encode()


_BODIES: dict[int, Callable[..., bytes]] = {
    METADATA: _metadata,
    LIST_OFFSETS: _offsets,
    FETCH: _fetched,
}
