"""The producer's side: put items, tables, tars and folders into an inbox, and say when a task is complete.

Invariant: a shard appears under its name whole and durable, or not at all. Landing the same bytes under
the same name again does nothing, so a producer may simply repeat itself; other bytes under that name
raise `ShardExists`. What `land_items` lands, a reader takes with the same fields: they go through the same
checks here as there. `inbox` is a local folder or `s3://bucket/prefix`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from pathlib import Path
from typing import IO, Any

import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.ingest.arrow_rows import rows_at_once
from stream_odml.ingest.new_items import GROUP_BYTES, ROWS_PER_GROUP, checked, groups_of, schema_of, table_of
from stream_odml.ingest.new_items import NewItem as NewItem
from stream_odml.ingest.reading import check_rows
from stream_odml.ingest.shard import (
    FILE_FORMATS,
    IMAGE_SUFFIXES,
    TASK_SUFFIX,
    ShardManifest,
    format_of,
    shard_name,
)
from stream_odml.storage.publish import MAX_NAME_CHARS, check_name, publish
from stream_odml.storage.publish import ShardExists as ShardExists
from stream_odml.storage.reading import StorageOptions

Inbox = str | os.PathLike[str]
SHARD_BYTES = 1 << 30
_OTHER_FILES = {
    IMAGE_SUFFIXES: "is an image: put it into a folder of its class, and name the folder above that",
    frozenset({".zip", ".7z", ".rar"}): "is an archive: unpack it, and name the folder",
    frozenset({".gz", ".tgz", ".bz2", ".tbz", ".tbz2", ".xz", ".txz", ".zst", ".lz4"}): (
        "is compressed: decompress it, and name what comes of it"
    ),
    frozenset({".csv", ".tsv", ".jsonl", ".json", ".txt", ".xlsx"}): (
        "holds no images: put it beside them as `metadata.csv` or `metadata.jsonl` with `file_name` and `label`, and "
        "name their folder"
    ),
    frozenset({".npy", ".pt", ".pth", ".pkl", ".h5", ".hdf5", ".tfrecord"}): (
        "is not read: write images or vectors to a Parquet file, or vectors to an .npz with an array `vector`"
    ),
}
"""What to do with a file of another kind, by its suffix."""
_READ_AHEAD = 1 << 20


def land_items(
    inbox: Inbox, name: str, items: Iterable[NewItem], options: StorageOptions | None = None
) -> str:
    """Land items as one Parquet shard `<name>.parquet`, streaming: all images, all vectors or all labels. Returns its
    URI. Raises ShardExists, ValueError for a bad name, no items or items of several kinds, RowError (a ValueError) for
    fields that no reader would take, OSError. Images are not looked at."""

    def write(file: IO[bytes]) -> None:
        each = checked(items)
        first = next(each, None)
        if first is None:
            raise ValueError(f"shard {name!r} has no items; land at least one")
        schema = schema_of(first)
        with pq.ParquetWriter(file, schema, compression={"class_name": "zstd"}) as writer:
            for group in groups_of(chain([first], each)):
                writer.write_table(table_of(group, first, schema))

    return publish(inbox, check_name(f"{name}.parquet"), write, options)


def land_file(
    inbox: Inbox,
    path: Inbox,
    name: str | None = None,
    options: StorageOptions | None = None,
    *,
    checked: bool = False,
) -> str:
    """Land a Parquet, Arrow or tar file as it is. `name` ends in its suffix; by default it is made from
    the file's own. `checked`: `check_rows` has been through it.

    Raises ValueError for another suffix, for a file none of whose first rows can be used, and for a damaged one.
    """
    source = Path(path)
    final = check_file_name(name or shard_name(source.stem) + source.suffix.lower())
    if not checked:
        check_rows(source.resolve(), format_of(final))  # whoever names a link here may follow it

    def write(file: IO[bytes]) -> None:
        with open(source, "rb") as data:
            shutil.copyfileobj(data, file, 8 << 20)

    return publish(inbox, final, write, options)


def check_file_name(name: str) -> str:
    """Return the name of a shard that is one file. Raises ValueError for a suffix that no reader has."""
    suffix = Path(name).suffix.lower()
    remedy = next((what for suffixes, what in _OTHER_FILES.items() if suffix in suffixes), None)
    if remedy is not None:
        raise ValueError(f"{name!r:.160} {remedy}")
    if format_of(check_name(name)) not in FILE_FORMATS.values():
        raise ValueError(f"{name!r}: expected a folder, or a name ending in {', '.join(FILE_FORMATS)}")
    return name


def land_parquet(
    inbox: Inbox,
    path: Inbox,
    rows_per_shard: int = 1000,
    name: str | None = None,
    only: Collection[str] | None = None,
) -> Iterator[str]:
    """Split a large Parquet file into shards `<name>-00000.parquet` …, one at a time; yields each URI as it lands.

    A shard has fewer rows where they would be more than `SHARD_BYTES`. `name` is by default made from the file's own;
    `only` leaves out shards of other names. Raises ValueError, ShardExists, OSError.
    """
    names = parquet_names(path, rows_per_shard, name)
    # Buffered beforehand, a row group would be held whole, whatever its size.
    with pq.ParquetFile(Path(path), buffer_size=_READ_AHEAD, pre_buffer=False) as table:
        parts = _numbered(_batches(table), _shard_rows(table.metadata, rows_per_shard))
        for final, (_, rows) in zip(names, groupby(parts, itemgetter(0)), strict=True):
            if only is None or final in only:
                batches = (batch for _, batch in rows)
                yield publish(inbox, final, partial(_write, batches, table.schema_arrow))


def parquet_names(path: Inbox, rows_per_shard: int, name: str | None) -> list[str]:
    """Return the names of the shards that `land_parquet` cuts a file into, without reading a row of it."""
    if rows_per_shard < 1:
        raise ValueError(f"rows_per_shard {rows_per_shard}: expected at least 1")
    source = Path(path)
    stem = shard_name(source.stem) if name is None else name
    with pq.ParquetFile(source) as table:
        count = -(-table.metadata.num_rows // _shard_rows(table.metadata, rows_per_shard))
    return [check_name(f"{stem}-{index:05d}.parquet") for index in range(count)]


def _shard_rows(metadata: Any, rows_per_shard: int) -> int:
    """Return rows of a shard: as asked, or as many as make about `SHARD_BYTES` where images are largest."""
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    largest = max((_size_of(group) // max(1, group.num_rows) for group in groups), default=1)
    return max(1, min(rows_per_shard, SHARD_BYTES // max(1, largest)))


def _size_of(group: Any) -> int:
    """Return bytes of a row group: what the file says, but no fewer than lie there compressed."""
    there = sum(int(group.column(at).total_compressed_size) for at in range(group.num_columns))
    return max(int(group.total_byte_size), there)


def _batches(table: Any) -> Iterator[Any]:
    """Yield the rows of a Parquet file, some megabytes at a time."""
    for group in range(table.num_row_groups):
        count = rows_at_once(table.metadata.row_group(group))
        yield from table.iter_batches(count, row_groups=[group], use_threads=False)


def _numbered(batches: Iterator[Any], count: int) -> Iterator[tuple[int, Any]]:
    """Yield the same rows, cut after every `count` of them, with the number of the shard that they are of."""
    at = 0
    for batch in batches:
        while batch.num_rows:
            part = batch.slice(0, count - at % count)
            yield at // count, part
            at, batch = at + part.num_rows, batch.slice(part.num_rows)


def _write(batches: Iterator[Any], schema: Any, file: IO[bytes]) -> None:
    with pq.ParquetWriter(file, schema) as writer:
        for group in _row_groups(batches):
            writer.write_table(group)


def _row_groups(batches: Iterator[Any]) -> Iterator[Any]:
    """Yield tables of one row group each: at most `ROWS_PER_GROUP` rows and, but for a single row,
    about `GROUP_BYTES`."""
    held: list[Any] = []
    rows = size = 0
    for batch in batches:
        while batch.num_rows:
            each = max(1, batch.nbytes // batch.num_rows)
            room = min(ROWS_PER_GROUP - rows, (GROUP_BYTES - size) // each)
            if held and room < 1:
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, 0
                continue
            part = batch.slice(0, max(1, room))
            batch = batch.slice(part.num_rows)
            held.append(part)
            rows, size = rows + part.num_rows, size + part.nbytes
    if held:
        yield pa.Table.from_batches(held)


def complete_task(
    inbox: Inbox, task: str, shards: Iterable[str] | None = None, options: StorageOptions | None = None
) -> str:
    """Say that a task is complete: it consists of the named shards; with None, of all that landed before and waits.

    `shards` are names (or URIs, whose last part counts). To keep a boundary from closing some of them earlier, complete
    the task *before* they land: it waits for them. Lands `<task>.task.json` and returns its URI. Raises ValueError for
    a task that is no file name or has no shard, ShardExists for one that was completed with others.
    """
    final = check_task(task)
    names = None if shards is None else tuple(os.fspath(s).rstrip("/").rpartition("/")[2] for s in shards)
    if names is not None and not all(names or [""]):
        raise ValueError(f"task {task!r} names no shard: there is nothing to complete")
    manifest = ShardManifest(task=task, task_complete=True, shards=names)
    try:
        return publish(inbox, final, lambda file: file.write(manifest.to_bytes()), options)
    except ShardExists as error:
        raise ShardExists(
            f"task {task!r} was completed before, with other shards; a task is completed once: choose another name"
        ) from error


def check_task(task: str) -> str:
    """Return the file name of a task's manifest. Raises ValueError for a task that is no file name."""
    try:
        return check_name(task + TASK_SUFFIX)
    except ValueError:
        room = MAX_NAME_CHARS - len(TASK_SUFFIX)
        raise ValueError(
            f"task {task!r:.80}: expected 1-{room} letters, digits, '.', '_', '-', first a letter or digit"
        ) from None


def push_name(idempotency_key: str) -> str:
    """Return the shard name for images pushed under a key: the same key gives the same name."""
    if not idempotency_key:
        raise ValueError("the idempotency key is empty; send a fresh random one with every new batch")
    return f"push-{hashlib.sha256(idempotency_key.encode()).hexdigest()[:24]}"
