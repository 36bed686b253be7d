"""A range of one partition's messages as a shard: an immutable file with each message as it was sent.

Invariant: every offset of [start, end) is either a message in the file or part of a gap that its reader reports, so
nothing that a topic held is left out without a word. The file says how it is to be read, so it is read the same way
when it is indexed and when it is learnt.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.ingest import fields
from stream_odml.ingest.kafka_options import MessageFormat
from stream_odml.ingest.message_values import Decode, decoder_of
from stream_odml.ingest.rawrow import RawRow
from stream_odml.ingest.reasons import BadShard, Reason, RowError
from stream_odml.ingest.shard_file import ShardFile

FORMAT = "messages"
"""What a `ShardRef` of such a file says of its format."""
SUFFIX = ".messages.parquet"
_ABOUT = b"stream_odml.range"
_SCHEMA = pa.schema(
    [
        ("offset", pa.int64()),
        ("time_ms", pa.int64()),
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", pa.list_(pa.struct([("name", pa.string()), ("value", pa.binary())]))),
    ]
)


class Message(NamedTuple):
    """One message as it was sent. `time_ms` since 1970, -1 where there is none; a null `value` is a tombstone."""

    offset: int
    time_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]

    def header(self, name: str) -> bytes | None:
        """Return the last header of this name."""
        return next((value for key, value in reversed(self.headers) if key == name), None)


@dataclass(frozen=True)
class Range:
    """Offsets [start, end) of a partition. Below `low` they are gone by the topic's retention."""

    topic: str
    partition: int
    start: int
    end: int
    low: int = 0
    generation: int = 0
    """Of the topic: one that was made anew has the same offsets for other messages."""

    @property
    def place(self) -> str:
        """Return the name of the partition, `topic/partition`; of a later generation, `topic@generation/partition`,
        which no topic's name holds."""
        return f"{self.topic}{f'@{self.generation}' if self.generation else ''}/{self.partition}"


def write_range(file: IO[bytes], about: Range, messages: Sequence[Message], format: MessageFormat) -> None:
    """Write a range; equal ranges give equal bytes."""
    text = json.dumps({"range": asdict(about), "format": asdict(format)}, sort_keys=True)
    columns: list[Any] = [*zip(*messages, strict=True)] if messages else [()] * len(_SCHEMA)
    columns[-1] = [[{"name": name, "value": value} for name, value in pairs] for pairs in columns[-1]]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    table = pa.Table.from_arrays(arrays, schema=_SCHEMA.with_metadata({_ABOUT: text.encode()}))
    # Images do not compress, and a dictionary of them costs memory.
    pq.write_table(table, file, compression="none", use_dictionary=False, write_statistics=False)


def read_range(file: ShardFile) -> tuple[Range, MessageFormat, list[Message]]:
    """Read a range that `write_range` wrote. Raises BadShard for another file, TransientReadError."""
    try:
        table = pq.read_table(pa.PythonFile(file, mode="r"), use_threads=False, schema=_SCHEMA)
        file.seek(0)
        body = json.loads((pq.read_schema(pa.PythonFile(file, mode="r")).metadata or {})[_ABOUT])
        about, format = Range(**body["range"]), MessageFormat(**body["format"])
    except (pa.ArrowException, KeyError, TypeError, ValueError) as error:
        if file.failure is not None:
            raise file.failure from error
        raise BadShard(Reason.CORRUPT_FILE, f"no range of messages: {str(error)[:200]}") from error
    offsets, times, keys, values, headers = (column.to_pylist() for column in table.columns)
    pairs = (tuple((one["name"], one["value"]) for one in given or ()) for given in headers)
    return about, format, list(map(Message, offsets, times, keys, values, pairs))


def message_rows(file: ShardFile) -> Iterator[RawRow]:
    """Yield rows of a range in the order of their offsets, then one for each gap. Errors as `read_range`."""
    about, format, messages = read_range(file)
    decode = decoder_of(format)
    rows = [_row(number, about, message, format, decode) for number, message in enumerate(messages)]
    yield from _superseded(row for row in rows if row is not None)
    yield from _gaps(about, messages, format)


def _row(number: int, about: Range, message: Message, format: MessageFormat, decode: Decode) -> RawRow | None:
    """Return what a message says; None for a tombstone that was obeyed."""
    place = f"{about.place}/{message.offset}"
    if erases(message, format):
        return None
    row = RawRow(number, path=place, item_id=place)
    try:
        if message.value is None:
            raise RowError(Reason.MISSING_IMAGE, f"a message without a value ({_why_kept(format)})")
        found = decode(message.value, dict(message.headers))
        given = message.header(format.id_header) or (message.key if format.key_is_id else found.item_id)
        return replace(
            row,
            image=found.image,
            label=message.header(format.class_header) if found.label is None else found.label,
            item_id=place if given in (None, b"", "") else given,
            attributes={**_attributes(message, format), **found.attributes},
            time=found.time or (message.time_ms / 1000 if message.time_ms > 0 else None),
        )
    except RowError as error:
        return replace(row, image=message.value, problem=(error.reason, error.detail))


def _why_kept(format: MessageFormat) -> str:
    if format.tombstones == "refuse":
        return "kafka.tombstones: refuse"
    key = " or key" if format.key_is_id else "; its key is none, as kafka.key_is_id is off"
    return f"it erases nothing and closes no task, as no item can have the id in its header {format.id_header}{key}"


def erased_id(message: Message, format: MessageFormat) -> str | None:
    """Return the item that a tombstone erases; None for one that names none."""
    given = message.header(format.id_header) or (message.key if format.key_is_id else None)
    try:
        return fields.item_id(given)
    except RowError:
        return None


def erases(message: Message, format: MessageFormat) -> bool:
    """Return whether a message is a tombstone that erases an item."""
    is_tombstone = message.value is None and format.tombstones == "erase"
    return is_tombstone and erased_id(message, format) is not None


def erased_by(messages: Sequence[Message], format: MessageFormat) -> tuple[str, ...]:
    """Return the items that a range of tombstones erases; none where any of its messages has a value."""
    if format.tombstones != "erase" or any(message.value is not None for message in messages):
        return ()
    ids = (erased_id(message, format) for message in messages)
    return tuple(dict.fromkeys(name for name in ids if name is not None))


def _attributes(message: Message, format: MessageFormat) -> dict[str, Any]:
    """Return all other headers, by name."""
    taken = (format.class_header, format.id_header)
    try:
        return {name: (value or b"").decode() for name, value in message.headers if name not in taken}
    except UnicodeDecodeError as error:
        raise RowError(Reason.BAD_ATTRIBUTES, f"a header is not UTF-8: {error}") from error


def _superseded(rows: Iterator[RawRow]) -> Iterator[RawRow]:
    """Yield the rows; of several with one id all but the last are problems, as a log means it: the last one counts."""
    known = list(rows)
    last = {_text(row.item_id): row for row in known if row.problem is None}
    for row in known:
        newer = last.get(_text(row.item_id), row)
        if newer is row or row.problem is not None:
            yield row
        else:
            # Whoever erases the item finds by its id what was refused of it.
            detail = f"{row.path}: {newer.path} has its id, {_text(row.item_id)}, and came later"
            yield replace(row, problem=(Reason.DUPLICATE_ID, detail))


def _text(item_id: Any) -> Any:
    return item_id.decode(errors="replace") if isinstance(item_id, bytes) else item_id


def _gaps(about: Range, messages: Sequence[Message], format: MessageFormat) -> Iterator[RawRow]:
    number = len(messages)
    reasons = [(Reason.LOST_MESSAGES, f"deleted before they were read: the topic begins at {about.low}")]
    reasons.append((Reason.ABSENT_MESSAGES, "not in the topic: compacted, or of a transaction (kafka.gaps)"))
    for first, end in _absent(about, [message.offset for message in messages]):
        lost = min(end, max(first, about.low))
        for start, stop, (reason, why) in zip((first, lost), (lost, end), reasons, strict=True):
            if stop > start and (reason is Reason.LOST_MESSAGES or format.gaps == "report"):
                detail = f"{stop - start} offsets, {start} to {stop - 1}, {why}"
                yield RawRow(number, problem=(reason, detail), path=about.place)
                number += 1


def _absent(about: Range, offsets: Sequence[int]) -> Iterator[tuple[int, int]]:
    wanted = about.start
    for offset in (*offsets, about.end):
        if offset > wanted:
            yield wanted, offset
        wanted = offset + 1
