"""An item to land, and how items become the table of a shard: with the fields that a reader of it will give.

Protects: what `checked` lets through, `reading.py` takes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_odml.ingest import fields
from stream_odml.ingest.rawrow import MAX_IMAGE_BYTES, Content
from stream_odml.ingest.reasons import Reason, RowError
from stream_odml.ingest.vectors import checked_vector

ROWS_PER_GROUP = 256
GROUP_BYTES = 64 << 20
"""A row group holds no more rows than take so many bytes: readers decode one at a time."""
_LABEL = [pa.field("class_name", pa.string()), pa.field("item_id", pa.string())]
_FIELDS = [
    *_LABEL,
    pa.field("attributes", pa.map_(pa.string(), pa.string())),
    pa.field("time", pa.timestamp("us", "UTC")),
]


@dataclass(frozen=True)
class NewItem:
    """One image or vector to land: encoded bytes or values, its class by name, and what else is known. A vector's class
    may be empty until somebody says it."""

    image: bytes = b""
    class_name: str = ""
    item_id: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    time: datetime | None = None
    vector: NDArray[np.floating[Any]] | None = field(default=None, compare=False)
    is_label: bool = False
    """It has neither: it says the class of the item of its id, which is stored."""

    @property
    def content(self) -> Content:
        """What it holds."""
        if self.vector is not None:
            return "vector"
        return "label" if self.is_label else "image"

    @property
    def nbytes(self) -> int:
        """Bytes of its image or vector."""
        return len(self.image) if self.vector is None else 4 * self.vector.size


def groups_of(items: Iterable[NewItem]) -> Iterator[list[NewItem]]:
    """Yield items of one row group each: so many that a reader need not hold more than `GROUP_BYTES` and an image."""
    group: list[NewItem] = []
    held = 0
    for item in items:
        if group and (len(group) == ROWS_PER_GROUP or held + item.nbytes > GROUP_BYTES):
            yield group
            group, held = [], 0
        group.append(item)
        held += item.nbytes
    if group:
        yield group


def checked(items: Iterable[NewItem]) -> Iterator[NewItem]:
    """Yield the items with their fields as a reader will give them. Raises RowError, which names the item
    by its place."""
    seen: set[str] = set()
    for place, item in enumerate(items):
        try:
            yield _checked(item, seen)
        except RowError as error:
            raise type(error)(error.reason, f"item {place}: {error.detail}") from error


def _checked(item: NewItem, seen: set[str]) -> NewItem:
    item_id = fields.item_id(item.item_id)
    if item_id is not None:
        if item_id in seen:
            raise RowError(Reason.DUPLICATE_ID, f"its id {item_id!r} came before in this shard")
        seen.add(item_id)
    if len(item.image) > MAX_IMAGE_BYTES:
        raise RowError(Reason.OVERSIZED, f"{len(item.image)} bytes of image, at most {MAX_IMAGE_BYTES}")
    if item.content == "label" and item_id is None:
        raise RowError(Reason.BAD_ID, "a label without an id; name the item that it belongs to")
    vector = None if item.vector is None else checked_vector(item.vector)
    name = fields.class_name(item.class_name) if item.class_name or vector is None else ""
    attributes, time = fields.attributes(item.attributes), fields.when(item.time)
    return NewItem(item.image, name, item_id, attributes, time, vector, item.is_label)


def schema_of(first: NewItem) -> Any:
    """Return the columns of a shard whose first item is this."""
    if first.content == "label":
        return pa.schema(_LABEL)
    if first.vector is None:
        return pa.schema([pa.field("image", pa.binary()), *_FIELDS])
    return pa.schema([pa.field("vector", pa.list_(pa.float32(), first.vector.size)), *_FIELDS])


def table_of(items: Sequence[NewItem], first: NewItem, schema: Any) -> Any:
    """Return items as a table. Raises ValueError for one of another kind than the first."""
    for item in items:
        if item.content != first.content:
            raise ValueError(
                f"a shard of {first.content}s with a {item.content} in it; land them as two shards"
            )
    columns: dict[str, Any] = {
        "class_name": [item.class_name for item in items],
        "item_id": [item.item_id for item in items],
    }
    if first.content != "label":
        columns["attributes"] = [list(item.attributes.items()) for item in items]
        columns["time"] = [item.time for item in items]
    if first.vector is not None:
        columns["vector"] = _vectors(items, first.vector.size)
    elif first.content == "image":
        columns["image"] = [item.image for item in items]
    return pa.table(columns, schema=schema)


def _vectors(items: Sequence[NewItem], dim: int) -> Any:
    vectors = [item.vector for item in items if item.vector is not None]
    wrong = next((vector for vector in vectors if vector.size != dim), None)
    if wrong is not None:
        raise RowError(
            Reason.WRONG_DIMENSION, f"{wrong.size} values beside vectors of {dim}; all need one length"
        )
    values = np.concatenate(vectors).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(pa.array(values), dim)
