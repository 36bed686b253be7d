"""The Parquet files of small images that stand beside a gallery, by item: thumbnails and held-out images.

Protects: such a file is data of somebody else. One that is no such file, or that decodes to far more than its own size,
has no images, and whoever asked goes on without.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.ingest.bounds import memory_allowed
from stream_odml.storage.files import Files

log = logging.getLogger(__name__)
_COLUMNS = ["item_id", "image"]


def has_images(files: Files, path: str) -> bool:
    """Return whether there is such a file."""
    try:
        return files.exists(path)
    except ValueError:  # a name or a link that leads out of the root
        return False


def read_images(files: Files, path: str) -> dict[str, bytes]:
    """Return the encoded image of each item in a file; nothing where it is not there, or is none."""
    try:
        data = files.read(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s is not read: %s", path, error)
        return {}
    try:
        return dict(_rows(data))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        log.warning("%s is no file of images: %s", path, error)
        return {}


def _rows(data: bytes) -> Iterator[tuple[str, bytes]]:
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=_COLUMNS)
    _check_size(file.metadata, memory_allowed(len(data)))
    # As dictionaries: a value that many rows repeat is held once, as it is in the file.
    table = file.read(columns=_COLUMNS, use_threads=False)
    if table.column_names != _COLUMNS:
        raise ValueError(f"it has the columns {', '.join(table.column_names) or 'none'} of {_COLUMNS}")
    items, images = (_values(table.column(name)) for name in _COLUMNS)
    for item, image in zip(items, images, strict=True):
        if isinstance(item, str) and isinstance(image, bytes):
            yield item, image


def _check_size(metadata: pq.FileMetaData, limit: int) -> None:
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    size = sum(group.total_byte_size for group in groups) + 64 * metadata.num_rows
    if size > limit:
        raise ValueError(f"it decodes to {size} bytes, at most {limit} are read")


def _values(column: pa.ChunkedArray) -> Iterator[object]:
    for chunk in column.chunks:
        if not pa.types.is_dictionary(chunk.type):
            yield from chunk.to_pylist()
            continue
        values = chunk.dictionary.to_pylist()
        yield from (None if at is None else values[at] for at in chunk.indices.to_pylist())
