"""The gallery as it leaves: one row an item, with its vector in the served space, for any store that compares vectors
by inner product.

Protects: the inner product of a query and a row is the score that a search of the stream gives. A discriminant head
compares an item by one of two parts of an embedding, with a factor and a constant for items of classes that it does
not know: a row is zero where it is not compared, and a last entry carries the constant. While it knows the class of
every item, rows are the known part alone; where that compares all items, with the constant behind it whatever it knows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_odml.exchange.source import as_lists
from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.artifacts import HEAD, STUDENT
from stream_odml.store.store import Store
from stream_odml.zero import unit_rows

Floats = NDArray[np.float32]
Layout = Literal["whole", "known", "shared", "full"]
BLOCK = 8192


@dataclass(frozen=True, eq=False)
class Gallery:
    """Living items of one snapshot, in the order of their ids."""

    snapshot: GallerySnapshot
    store: Store
    numbers: NDArray[np.int64]
    """Rows of the snapshot."""
    ids: list[str]
    layout: Layout
    space: str
    """Equal for equal vectors: of one head, in one layout."""

    @staticmethod
    def load(root: str, storage_options: dict[str, str] | None = None) -> Gallery:
        """Return the gallery as the root is now. Raises NotAStreamRoot, NoVersionYet."""
        store = Store.open(root, storage_options)
        snapshot = GallerySnapshot.load(store, SearchSettings("exact"))
        rows = snapshot.rows()
        ids = snapshot.columns.item_ids.take(rows)
        order = np.argsort(np.array(ids, object), kind="stable") if ids else np.empty(0, np.int64)
        layout = _layout(snapshot)
        artifacts = store.tree.get(store.tree.head).artifacts
        space = f"{layout}{artifacts.get(HEAD, artifacts[STUDENT]).sha256[:12]}"
        return Gallery(snapshot, store, rows[order], [ids[at] for at in order], layout, space)

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def version(self) -> str:
        """In whose space the vectors are."""
        return self.snapshot.version

    @property
    def head(self) -> DiscriminantHead | None:
        """In exact form."""
        return self.snapshot.space.head

    @property
    def dim(self) -> int:
        """Length of a vector."""
        if self.head is None or self.layout == "whole":
            return self.snapshot.dim
        return self._compared + (self.layout != "known")

    @property
    def _compared(self) -> int:
        """Entries of an embedding that are compared, the first ones."""
        assert self.head is not None
        return self.head.dim if self.layout in ("whole", "full") else self.head.known_dim

    def vectors(self, at: NDArray[np.int64]) -> Floats:
        """Return vectors of some items, numbers into `ids`."""
        found: Floats = self.snapshot.vectors(self.numbers[at])
        if self.head is None or self.layout == "whole":
            return found
        found = np.ascontiguousarray(found[:, : self._compared])
        if self.layout == "known":
            return found
        is_new = np.zeros(len(found), bool)
        is_new[self.snapshot.parts[-1].places(self.numbers[at])[0]] = True
        scaled = np.where(is_new[:, None], np.float32(self.head.new_scale) * found, found)
        bonus = np.where(is_new, self.head.new_bonus, 0.0).astype(np.float32)
        return np.concatenate([scaled, bonus[:, None]], axis=1)

    def queries(self, features: Floats) -> Floats:
        """Return what is compared with the rows, of trunk features (of vectors, in a stream of vectors) [n, D]."""
        if self.head is None:
            return unit_rows(features)
        z = np.ascontiguousarray(self.head.embed(features)[:, : self._compared])
        if self.layout in ("whole", "known"):
            return z
        return np.concatenate([z, np.ones((len(z), 1), np.float32)], axis=1)

    def table(self, at: NDArray[np.int64]) -> pa.Table:
        """Return items as rows: id, class_name, attributes (JSON), version, vector."""
        columns, rows = self.snapshot.columns, self.numbers[at]
        return pa.table(
            {
                "id": pa.array([self.ids[one] for one in at], pa.string()),
                "class_name": pa.array([columns.name("class_name", int(row)) for row in rows], pa.string()),
                "attributes": pa.array(columns.attributes.take(rows), pa.string()),
                "version": pa.array([self.version] * len(at), pa.string()),
                "vector": as_lists(self.vectors(at)),
            }
        )

    def blocks(self) -> Iterator[pa.Table]:
        """Yield all rows, some thousand at a time."""
        for start in range(0, len(self), BLOCK):
            yield self.table(np.arange(start, min(start + BLOCK, len(self))))


def _layout(snapshot: GallerySnapshot) -> Layout:
    head = snapshot.space.head
    if head is None or not head.known_dim:
        return "whole"
    if head.compares_all:  # rows stay as long whatever lands
        return "shared" if head.new_bonus else "known"
    alive = snapshot.columns.array("class_name")[snapshot.rows()]
    names = snapshot.columns.names["class_name"].names
    return "known" if all(head.knows(names[code]) for code in np.unique(alive)) else "full"
