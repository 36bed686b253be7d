"""Rows of one data file of a Lance dataset: a process of its own (`lance_copy.py`) writes it as an Arrow file, which
the decoder of tables then reads.

Protects: whoever reads shards, from a file that ends its reader, or decodes to more than its size allows.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import IO

from stream_odml.ingest.bounds import decoded_allowed, memory_allowed
from stream_odml.ingest.child import ENDED_FROM_OUTSIDE, command, how_it_ended, import_path
from stream_odml.ingest.rawrow import ANY_CONTENT, Content, RawRow
from stream_odml.ingest.reasons import BadShard, Reason, TransientReadError
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.ingest.tables import table_rows
from stream_odml.storage.files import unnamed_file
from stream_odml.storage.reading import StorageOptions, is_remote

DATA, SUFFIX = "data", ".lance"
"""Folder of a dataset's data files, and how their names end."""


def size_of(uri: str, options: StorageOptions | None) -> int:
    """Return bytes of a data file. Raises BadShard(missing_file), TransientReadError."""
    with ShardFile(uri, options) as file:
        return file.size_bytes


def lance_rows(
    uri: str,
    size_bytes: int,
    options: StorageOptions | None,
    constants: Mapping[str, str],
    contents: Sequence[Content] = ANY_CONTENT,
) -> Iterator[RawRow]:
    """Yield rows in file order. Raises BadShard (corrupt, oversized, wrong schema) and TransientReadError."""
    with unnamed_file() as (aside, path):
        _copy(uri, size_bytes, options, aside)
        with ShardFile(str(path), follow=True) as file:
            yield from table_rows(file, "arrow", constants, contents)


def _copy(uri: str, size_bytes: int, options: StorageOptions | None, sink: IO[bytes]) -> None:
    """Fill `sink`. The credentials go through a pipe: arguments are for everybody to see."""
    job = {"uri": uri, "options": dict(options or {}), "limit": decoded_allowed(size_bytes)}
    job["memory"] = memory_allowed(size_bytes)
    done = subprocess.run(
        command("lance_copy"),
        input=json.dumps(job).encode(),
        stdout=sink,
        stderr=subprocess.PIPE,
        env={**os.environ, **import_path()},
        check=False,
    )
    if done.returncode in ENDED_FROM_OUTSIDE:
        raise TransientReadError(
            f"the process that reads {uri} was ended by signal {-done.returncode}; it is read again"
        )
    if done.returncode:
        raise BadShard(Reason.KILLED_READER, f"reading it ended the reader: {how_it_ended(done.returncode)}")
    said: dict[str, str] = json.loads(done.stderr.splitlines()[-1])
    if "missing" in said:
        raise TransientReadError(
            f"{uri} needs a library that is not here ({said['missing']}): pip install 'stream-odml[lance]'"
        )
    if "failed" in said and is_remote(uri):
        raise TransientReadError(f"{uri} cannot be read now: {said['failed']}")
    if "failed" in said:
        raise BadShard(Reason.CORRUPT_FILE, said["failed"])
    if "refused" in said:
        raise BadShard(Reason(said["refused"]), said["detail"])
