"""The Parquet files of small images that stand beside a gallery, by item: thumbnails and held-out images.

Protects: such a file is data of somebody else. One that is no such file, or that decodes to far more than its own size,
has no images, and whoever asked goes on without.
"""

from __future__ import annotations

import logging
from collections.abc import Container, Iterator

from stream_odml.ingest.bounds import memory_allowed
from stream_odml.ingest.reasons import BadShard, Reason
from stream_odml.ingest.shard_file import HeldFile
from stream_odml.ingest.tables import table_rows
from stream_odml.storage.files import Files

log = logging.getLogger(__name__)
_ROW_BYTES = 64
_STARTS = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"GIF8": "image/gif", b"RIFF": "image/webp"}


def image_type(image: bytes) -> str:
    """Return the media type of an encoded image, of those that a browser shows."""
    return next(
        (kind for start, kind in _STARTS.items() if image.startswith(start)), "application/octet-stream"
    )


def has_images(files: Files, path: str) -> bool:
    """Return whether there is such a file."""
    try:
        return files.exists(path)
    except ValueError:  # a name or a link that leads out of the root
        return False


def read_images(files: Files, path: str) -> dict[str, bytes]:
    """Return the encoded image of each item in a file; nothing where there is none that can be read."""
    try:
        return wanted_images(files, path)
    except OSError as error:
        log.warning("%s is not read: %s", path, error)
        return {}


def wanted_images(files: Files, path: str, items: Container[str] | None = None) -> dict[str, bytes]:
    """Return the encoded images of these items, or of all; nothing where the file is not there, or is none. Raises
    OSError where it cannot be read now."""
    try:
        found = _images(HeldFile(files.read(path), path))
        return {item: image for item, image in found if items is None or item in items}
    except FileNotFoundError:
        return {}
    except ValueError as error:  # BadShard, or a link or a pipe in its place
        log.warning("%s is no file of images: %s", path, error)
        return {}


def _images(file: HeldFile) -> Iterator[tuple[str, bytes]]:
    """Yield items and images as the decoder of shards finds them, which has a limit on its memory: what a file says of
    its own size is believed nowhere. An image that many rows repeat is held once."""
    limit, held = memory_allowed(file.size_bytes), 0
    images: dict[bytes, bytes] = {}
    for row in table_rows(file, "parquet", {"label": "any"}, ("image",)):
        if row.problem is None and row.image and isinstance(row.item_id, str):
            held += _ROW_BYTES + (0 if row.image in images else len(row.image))
            if held > limit:
                raise BadShard(Reason.OVERSIZED, f"it decodes to more than {limit} bytes")
            yield row.item_id, images.setdefault(row.image, row.image)
