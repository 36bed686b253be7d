"""What a format reader hands over: one row with its fields as found, nothing checked yet.

Invariant: format readers only unpack; `reading.py` alone decides what is usable, the same way for every format.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stream_odml.ingest.reasons import Reason

Content = Literal["image", "vector", "label"]
ANY_CONTENT: tuple[Content, ...] = ("image", "vector", "label")
"""What rows may hold; of several that a table has, the first that is asked for counts."""
MAX_IMAGE_BYTES = 64 << 20
"""A row whose image file is larger is refused unread (oversized)."""


NAMES: Mapping[str, tuple[str, ...]] = {
    "image": ("image", "img", "bytes"),
    "vector": ("vector", "embedding", "embeddings", "vec"),
    "label": ("class_name", "label", "labels", "class", "category"),
    "item_id": ("item_id", "id"),
    "attributes": ("attributes",),
    "time": ("time", "timestamp"),
}
"""Columns, arrays or fields of a record that hold each part of a row; the first that is there counts."""
LABEL_FIELDS = NAMES["label"][:3]
"""Of a record, and of a file beside images: `class` and `category` may be anything there."""


@dataclass(frozen=True)
class RawRow:
    """`label` is a class name or a number (`names` resolves it). `problem` is what the reader itself had to refuse."""

    row: int
    image: bytes | None = None
    label: Any = None
    names: tuple[str, ...] | None = None
    item_id: Any = None
    attributes: Any = None
    time: Any = None
    problem: tuple[Reason, str] | None = None
    path: str | None = None
    """Where its image lies within what was landed: a file of a folder, a member of a tar, a
    message as topic/partition/offset."""
    key: str | None = None
    """A name that must not occur twice in the shard although it is not the item's id (a tar key)."""
    vector: bytes | None = None
    """In place of an image: values as little-endian float32."""
    is_label: bool = False
    """It has neither image nor vector: it names the class of an item that is stored."""
