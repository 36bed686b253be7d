"""Rows of one data file of a Lance dataset: Lance reads it here, and hands it on as an Arrow file to the decoder.

Protects: whoever reads shards, from a file that decodes to more than its size allows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any

import pyarrow as pa

from stream_odml.ingest.bounds import decoded_allowed
from stream_odml.ingest.rawrow import ANY_CONTENT, Content, RawRow
from stream_odml.ingest.reasons import BadShard, Reason, TransientReadError
from stream_odml.ingest.shard_file import ShardFile
from stream_odml.ingest.tables import table_rows
from stream_odml.storage.reading import StorageOptions, is_remote

DATA, SUFFIX = "data", ".lance"
"""Folder of a dataset's data files, and how their names end."""
_BATCH_ROWS = 64


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
    with tempfile.NamedTemporaryFile(suffix=".arrow") as aside:
        _copy(uri, size_bytes, options, aside.file)
        with ShardFile(aside.name) as file:
            yield from table_rows(file, "arrow", constants, contents)


def _copy(uri: str, size_bytes: int, options: StorageOptions | None, sink: IO[bytes]) -> None:
    limit = decoded_allowed(size_bytes)
    try:
        from lance.file import LanceFileReader
    except ImportError as error:
        raise TransientReadError(
            f"{uri} needs a library that is not here ({error}): pip install 'stream-odml[lance]'"
        ) from error
    try:
        found: Any = LanceFileReader(uri, dict(options or {}) or None).read_all(batch_size=_BATCH_ROWS)
        writer = None
        for batch in found.to_batches():
            writer = writer or pa.ipc.new_file(sink, batch.schema)
            writer.write_batch(batch)
            if sink.tell() > limit:
                raise BadShard(Reason.OVERSIZED, f"{size_bytes} bytes of file decode to more than {limit}")
        if writer is None:
            raise BadShard(Reason.EMPTY_FILE, "the file has no rows")
        writer.close()
    except (OSError, ValueError, RuntimeError) as error:
        if is_remote(uri):
            raise TransientReadError(f"{uri} cannot be read now: {str(error)[:300]}") from error
        raise BadShard(Reason.CORRUPT_FILE, str(error)[:300]) from error
    sink.flush()
