"""How much a file may become when it is decoded: a small file that decodes to gigabytes is a bomb, not data.

Images are compressed already, so an honest table or tar decodes to little more than its own size.
"""

from __future__ import annotations

from collections.abc import Iterator

from stream_odml.ingest.rawrow import RawRow
from stream_odml.ingest.reasons import BadShard, Reason

FREE_BYTES = 256 << 20
"""What any file may decode to, at once and in all."""
MEMORY_PER_BYTE = 4
MAX_MEMORY_BYTES = 4 << 30
_DECODED_PER_BYTE = 64
_ROW_BYTES = 1024
"""What a row costs beside its image: rows without bytes are many in a small file too."""
_VALUE_BYTES = 256
_REFUSED_BYTES = 1 << 16
"""What attributes cost that are refused: it may have taken all the values that a row may have to find that out."""


def memory_allowed(size_bytes: int) -> int:
    """Return bytes of memory that reading a file of this size may take at once."""
    return min(FREE_BYTES + MEMORY_PER_BYTE * size_bytes, MAX_MEMORY_BYTES)


def decoded_allowed(size_bytes: int) -> int:
    """Return bytes that all rows of a file of this size may decode to, together."""
    return FREE_BYTES + _DECODED_PER_BYTE * size_bytes


def check_rows(rows: int, size_bytes: int) -> None:
    """Raise BadShard(oversized) for so many rows at once that `bounded` would refuse them, before one is made."""
    if rows * _ROW_BYTES > decoded_allowed(size_bytes):
        raise BadShard(Reason.OVERSIZED, f"{rows} rows at once in a file of {size_bytes} bytes")


def bounded(rows: Iterator[RawRow], size_bytes: int) -> Iterator[RawRow]:
    """Yield the same rows. Raises BadShard(oversized) once all of them together are out of proportion to the file."""
    limit, spent = decoded_allowed(size_bytes), 0
    for row in rows:
        spent += _ROW_BYTES + len(row.image or b"") + _attributes_size(row)
        if spent > limit:
            raise BadShard(
                Reason.OVERSIZED,
                f"{size_bytes} bytes of file decode to more than {limit} bytes in {row.row + 1} rows; "
                "write images as the files they are, each once",
            )
        yield row


def _attributes_size(row: RawRow) -> int:
    """Return about what the attributes of a row cost: encodings let many rows repeat one long list of them."""
    if row.problem is not None:
        return _REFUSED_BYTES if row.problem[0] == Reason.BAD_ATTRIBUTES else 0
    return _size(row.attributes)


def _size(value: object) -> int:
    if isinstance(value, dict):
        return sum(_VALUE_BYTES + _size(item) for item in value.values())
    if isinstance(value, list):
        return sum(_VALUE_BYTES + _size(item) for item in value)
    return len(value) if isinstance(value, str | bytes) else 0
