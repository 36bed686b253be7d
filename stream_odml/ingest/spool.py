"""Ranges of a log as files below the stream root: what is landed from them is what is learnt from them.

Invariant: a file is whole under its name or not there, and its name says its range. The ledger alone says how far a
partition was read; a file that follows it there was copied by a driver that was killed before it could say so.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from stream_odml.ingest.kafka_options import MessageFormat
from stream_odml.ingest.landing import complete_task
from stream_odml.ingest.message_range import FORMAT, SUFFIX, Range, erased_by, read_range, write_range
from stream_odml.ingest.partition import Closed
from stream_odml.ingest.reasons import BadShard
from stream_odml.ingest.shard import ShardManifest, ShardRef, make_shard_id, shard_name
from stream_odml.ingest.shard_file import ShardFile, hash_of_etag
from stream_odml.ingest.topic_position import Stamp
from stream_odml.storage.files import open_files
from stream_odml.storage.publish import ShardExists, file_sha256, publish
from stream_odml.storage.reading import StorageOptions, is_remote, local_path

MAX_TOPIC_CHARS = 80
"""Of a topic in the name of a file; a longer one ends in a hash."""
WRITES = 9
"""Names tried for one range: it has other bytes a second time only where its topic changed in between."""


class Spool:
    """The folder or prefix `place`. Errors: OSError."""

    def __init__(self, place: str, options: StorageOptions | None) -> None:
        self.place = place
        self._options = options
        self._files = open_files(place, dict(options) if options else None)

    def size_bytes(self) -> int:
        """Return bytes of all that lies there."""
        return sum(info.size for info in self._files.list(""))

    def put(self, closed: Closed, format: MessageFormat, topic_id: str) -> ShardRef:
        """Write a range and return its shard."""
        about = closed.about
        stamp = _stamp(about, topic_id)
        if closed.task is not None:
            uri = complete_task(self.place, closed.task, None, self._options)
            note = ShardManifest(closed.task, True, None)
            return replace(self._ref(uri, str(stamp)), format="task", manifest=note)
        uri = self._publish(closed, format)
        return replace(self._ref(uri, str(stamp)), erases=closed.erases)

    def _publish(self, closed: Closed, format: MessageFormat) -> str:
        base = self._name(closed.about)
        write = partial(write_range, about=closed.about, messages=closed.messages, format=format)
        for name in (base, *(f"{base}.{number}" for number in range(2, WRITES + 1))):
            try:
                return publish(self.place, name + SUFFIX, write, self._options)
            except ShardExists:
                continue  # of a driver that died, before its topic lost some of these messages
        raise OSError(
            f"{self.place} has {WRITES} files of one range, {base}; remove those that no shard names"
        )

    def names(self) -> list[str]:
        """Return names of the ranges that lie there."""
        return [info.path for info in self._files.list("") if info.path.endswith(SUFFIX)]

    def left(self, names: Sequence[str], at: Range, topic_id: str) -> tuple[ShardRef, int] | None:
        """Return a range from the start of `at` on that was copied and not ledgered, the longest of several,
        and its end."""
        start = self._name(at).rpartition("-")[0]
        ends = {name: _end(name) for name in names if name.startswith(f"{start}-")}
        longer = [name for name, end in ends.items() if end is not None and end > at.start]
        if not longer:
            return None
        name = max(longer, key=lambda name: (ends[name], name))
        uri = f"{self.place.rstrip('/')}/{name}"
        try:
            with ShardFile(uri, self._options) as file:
                about, format, messages = read_range(file)
            stamp = _stamp(replace(about, generation=at.generation), topic_id)
            erases = erased_by(messages, format)
            return replace(self._ref(uri, str(stamp)), erases=erases), about.end
        except BadShard:
            return None  # none of ours, or deleted since it was listed: its messages are copied again

    def _name(self, about: Range) -> str:
        generation = f"g{about.generation:04d}-" if about.generation else ""
        topic = shard_name(about.topic)
        if len(topic) > MAX_TOPIC_CHARS:
            topic = f"{topic[: MAX_TOPIC_CHARS - 9]}-{hashlib.sha256(about.topic.encode()).hexdigest()[:8]}"
        place = f"{topic}-{generation}p{about.partition:05d}"
        return f"{place}-{about.start:012d}-{about.end:012d}"

    def _ref(self, uri: str, stamp: str) -> ShardRef:
        name = uri.rpartition("/")[2]
        with ShardFile(uri, self._options) as file:
            size = file.size_bytes
            sha256 = hash_of_etag(file.looks) if is_remote(uri) else file_sha256(local_path(uri))
        place = uri if is_remote(uri) else str(local_path(uri).absolute())
        return ShardRef(make_shard_id(name, sha256), name, place, FORMAT, size, time.time_ns(), stamp)


def _stamp(about: Range, topic_id: str) -> Stamp:
    return Stamp(about.topic, about.generation, topic_id, about.partition, about.start, about.end)


def _end(name: str) -> int | None:
    text = name.removesuffix(SUFFIX).rpartition("-")[2].partition(".")[0]
    return int(text) if re.fullmatch(r"\d+", text) else None
