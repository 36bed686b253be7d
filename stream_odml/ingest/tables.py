"""Rows of a Parquet, Arrow IPC, npz or Lance file, decoded by a process of its own whose memory is bounded.

A table can be a bomb in many ways (compressed zeros, dictionaries, nesting, metadata), and Arrow has no bound of its
own on what it allocates. A limit on this process would be one on Ray and torch too, so the decoder is a process
apart (`table_reader.py`): it is started once, serves one file after another, and holds no file and no key. The bytes
are read here and handed to it, so that what cannot be read now is kept apart from what is bad. A file of Lance is
opened by its library alone: that decoder has the keys, and ends with this file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from stream_odml.ingest import fields
from stream_odml.ingest.bounds import bounded, memory_allowed
from stream_odml.ingest.child import (
    END,
    ENDED_FROM_OUTSIDE,
    READ,
    READ_BYTES,
    ROW,
    BadMessage,
    Child,
    Message,
    how_it_ended,
)
from stream_odml.ingest.lance_file import LANCE
from stream_odml.ingest.rawrow import ANY_CONTENT, MAX_IMAGE_BYTES, Content, RawRow
from stream_odml.ingest.reasons import BadShard, Reason, RowError, TransientReadError
from stream_odml.ingest.shard_file import HeldFile, ShardFile

_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "PYTHONHOME", "LANG", "LC_ALL", "TZ", "TZDIR")
"""Environment variables that a decoder gets: none of them is secret."""


def table_rows(
    file: ShardFile | HeldFile,
    format: str,
    constants: Mapping[str, str] | None = None,
    contents: Sequence[Content] = ANY_CONTENT,
) -> Iterator[RawRow]:
    """Return rows in file order. `constants` are columns that the file leaves out because they are the same
    in every row; of several `contents` that it has, the first that is named counts.

    Raises BadShard (empty, truncated, corrupt, wrong schema, oversized, killed_reader) and TransientReadError.
    """
    if file.size_bytes == 0:
        raise BadShard(Reason.EMPTY_FILE, "the file has no bytes")
    return bounded(_rows(file, format, constants or {}, contents), file.size_bytes)


def start_decoder() -> None:
    """Start a decoder, without waiting for it, so that the first table finds it ready: it takes a second to load."""
    _idle.append(_taken_decoder())


def _rows(
    file: ShardFile | HeldFile, format: str, constants: Mapping[str, str], contents: Sequence[Content]
) -> Iterator[RawRow]:
    decoder = Child("table_reader", os.environ) if format == LANCE else _taken_decoder()
    memory = memory_allowed(file.size_bytes)
    job = {"format": format, "size": file.size_bytes, "memory": memory, "constants": dict(constants)}
    job["contents"] = list(contents)
    if format == LANCE:
        job |= {"uri": file.uri, "options": dict(file.options or {})}
    try:
        decoder.pipe.send_json(job)
        while True:
            message = decoder.pipe.receive(MAX_IMAGE_BYTES)
            if message.kind == ROW:
                yield _row(message)
            elif message.kind == READ:
                decoder.pipe.send_bytes(_read(file, message.fields))
            elif message.kind == END:
                break
            else:
                raise BadMessage(f"a message of kind {message.kind!r}")
    except (BadMessage, BrokenPipeError) as error:
        raise _ended(decoder, memory) from error
    except BaseException:
        # Of whoever stops reading, too: the decoder is in the midst of a file, and serves no other.
        decoder.end()
        raise
    if format == LANCE:
        decoder.end()
    else:
        _idle.append(decoder)
    said = message.fields
    if "missing" in said:
        raise TransientReadError(
            f"{file.uri} needs a library that is not here ({said['missing']}): pip install 'stream-odml[lance]'"
        )
    if file.failure is not None or "unreachable" in said:
        what = file.failure or said["unreachable"]
        raise TransientReadError(f"{file.uri} cannot be read now: {what}") from file.failure
    if "reason" in said:
        raise BadShard(Reason(said["reason"]), str(said["detail"]))


def _read(file: ShardFile | HeldFile, wanted: Mapping[str, Any]) -> bytes | None:
    """Return bytes of the file; None where its medium fails, which the file then remembers."""
    left = min(int(wanted["count"]), READ_BYTES)
    parts = []
    try:
        file.seek(int(wanted["offset"]))
        while left and (part := file.read(left)):
            parts.append(part)
            left -= len(part)
    except TransientReadError:
        return None
    return b"".join(parts)


def _row(message: Message) -> RawRow:
    found, problem, time = message.fields, message.fields["problem"], message.fields["time"]
    refusal = None if problem is None else (Reason(problem[0]), str(problem[1]))
    if isinstance(time, list):
        try:
            time = fields.when_micros(time[0])
        except RowError as error:
            time, refusal = None, refusal or (error.reason, error.detail)
    names = None if found["names"] is None else tuple(found["names"])
    image, vector = (None, message.data) if found["is_vector"] else (message.data, None)
    said = {part: found[part] for part in ("label", "item_id", "attributes", "is_label")}
    return RawRow(int(found["row"]), image, vector=vector, names=names, time=time, problem=refusal, **said)


def _ended(decoder: Child, memory: int) -> Exception:
    """Return why a decoder broke off: the file ended it, or somebody else did."""
    code = decoder.end()
    if code in ENDED_FROM_OUTSIDE:
        return TransientReadError(
            f"the process that decodes the table was ended by signal {-code}; it is read again"
        )
    detail = f"decoding it within {memory} bytes of memory ended the decoder by {how_it_ended(code)}"
    return BadShard(Reason.KILLED_READER, detail)


def _new_decoder() -> Child:
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    # Other allocators reserve more than they use.
    environment |= {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    return Child("table_reader", environment, is_silent=True)


_idle: list[Child] = []
"""Decoders that wait for the next file; whatever thread takes one has it alone. A forked process has none of them."""
os.register_at_fork(after_in_child=_idle.clear)


def _taken_decoder() -> Child:
    """Return a decoder that waits, or a new one."""
    with contextlib.suppress(IndexError):
        while not (decoder := _idle.pop()).is_alive:
            decoder.end()
        return decoder
    return _new_decoder()
