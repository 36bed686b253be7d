"""A version's space: how what is stored, and what a client sends, become vectors of it.

In embedding form stored vectors are mapped to it. In exact form stored features are projected by the version's head,
block by block: items of classes that it knows by the known part of an embedding, all others by what it compares new
ones by.
Protects: beside the vectors themselves nothing is held that grows with the gallery.
"""

# n items   D trunk feature

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.learn.drift import IdentityMap
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.search.applying import map_in_place
from stream_odml.search.columns import Growable
from stream_odml.search.exact import Indices, Mask
from stream_odml.search.vectors import Vectors, normalise_rows
from stream_odml.store.mapping import Mapper
from stream_odml.store.select import encode
from stream_odml.store.store import Store
from stream_odml.store.tables import FloatArray
from stream_odml.store.trunks import in_one_trunk
from stream_odml.store.versions import VersionTree

BLOCK = 4096
"""Features projected at a time."""
MEASURED_PER_BLOCK = 8
"""Features of a block whose length is measured."""
Files = Sequence[tuple[str, Indices]]
"""Data files, and which rows of each."""
Features = Callable[[Store, str], FeatureCodes]


@dataclass(frozen=True, eq=False)
class Made:
    """Normalised vectors for one part of an embedding."""

    vectors: Growable
    numbers: Indices | None
    """Which of all rows they are; None for all."""
    first: int = 0
    """Where the part begins in an embedding."""
    scale: float = 1.0
    bonus: float = 0.0


@dataclass(frozen=True, eq=False)
class Space:
    """Of `version`; `dim` is the length of its embeddings."""

    version: str
    dim: int
    mapper: Mapper
    head: DiscriminantHead | None = None
    """In exact form."""
    head_of: Callable[[str], DiscriminantHead] | None = None
    """Of another version, in exact form."""
    lengths: Mapping[str, float] = field(default_factory=dict)
    """Mean length of the stored features that a version made: a direction alone is not enough to map it."""

    @staticmethod
    def of(store: Store, version: str) -> Space:
        """Return the space of a version of a root in either form."""
        if store.form == "embedding":
            return Space(version, store.dim, store.mapper)
        head = store.head_of(version)
        return Space(version, head.dim, store.mapper, head, store.head_of)

    def embeddings(self, outputs: FloatArray) -> FloatArray:
        """Return embeddings of what the version's student gives for images: features of a trunk by the head."""
        return outputs if self.head is None else self.head.embed(outputs)

    def dim_of(self, version: str) -> int:
        """Return length of the embeddings that a version made. Raises UnknownVersion."""
        if self.head_of is None or version == self.version:
            return self.dim
        return self.head_of(version).dim

    def length_of(self, tree: VersionTree, version: str) -> float:
        """Return the mean length of the features that a version's trunk made, as far as it was seen."""
        known = [length for name, length in self.lengths.items() if tree.same_trunk(name, version)]
        return float(np.mean(known or list(self.lengths.values()) or [1.0]))

    def is_at_hand(self, version: str) -> bool:
        """Return whether vectors of a version are read without any file being read."""
        if version == self.version:
            return True
        return self.head is None and self.mapper.at_hand(version, self.version)

    def queries(self, tree: VersionTree, vectors: Vectors) -> FloatArray:
        """Return vectors that any version made, in this space and normalised: float32 [n, dim]. Raises
        UnknownVersion, and ValueError for another length than that of the version's embeddings."""
        array, version = vectors.array, vectors.version
        if array.shape[1] != self.dim_of(version):
            raise ValueError(
                f"vectors have dimension {array.shape[1]}, this gallery has {self.dim_of(version)}; use its model"
            )
        if self.head is not None and version != self.version:
            return self._embedded_again(tree, array, version)
        mapped = (
            array if version == self.version else self.mapper.get(tree, version, self.version).apply(array)
        )
        found = np.array(mapped, dtype=np.float32, order="C")
        known = self.head.known_dim if self.head is not None else 0
        for part in (slice(0, known), slice(known, self.dim)) if known else (slice(0, self.dim),):
            block = np.ascontiguousarray(found[:, part])
            normalise_rows(block)
            found[:, part] = block
        return found

    def vectors(
        self, store: Store, files: Files, rows: pa.Table, features: Features
    ) -> tuple[list[Made], Space]:
        """Return vectors of `rows`, which lie in `files`, by part; and this space, with what was seen
        of their lengths."""
        if self.head is None:
            return [self._mapped(store, files, rows)], self
        return self._projected(self.head, store, files, rows, features)

    def _embedded_again(self, tree: VersionTree, array: FloatArray, version: str) -> FloatArray:
        assert self.head is not None
        assert self.head_of is not None
        h_nD = self.head_of(version).direction(array)
        drift = self.mapper.get(tree, version, self.version)
        if not isinstance(drift, IdentityMap):
            h_nD = drift.apply(h_nD * np.float32(self.length_of(tree, version)))
        return self.head.embed(h_nD)

    def _mapped(self, store: Store, files: Files, rows: pa.Table) -> Made:
        made, at = Growable.empty(len(rows), self.dim, dtype=np.float32), 0
        for path, chosen in files:
            made.rows[at : at + len(chosen)] = store.vectors(path)[chosen]
            at += len(chosen)
        map_in_place(self.mapper, store.tree, rows["version"], self.version, made.rows)
        normalise_rows(made.rows)
        return Made(made, None)

    def _projected(
        self, head: DiscriminantHead, store: Store, files: Files, rows: pa.Table, features: Features
    ) -> tuple[list[Made], Space]:
        known = self._known(head, rows)
        by_new = head.slice_of_new
        new = Growable.empty(int((~known).sum()), by_new.stop - by_new.start, dtype=np.float32)
        some = Growable.empty(int(known.sum()), head.known_dim, dtype=np.float32)
        at_known = at_new = 0
        lengths: dict[str, list[float]] = {}
        for at, codes in self._blocks(store, files, rows, features, lengths):
            mine = known[at : at + len(codes)]
            count = int(mine.sum())
            if count:
                some.rows[at_known : at_known + count] = head.known_part(codes[mine])
            if count < len(codes):
                new.rows[at_new : at_new + len(codes) - count] = head.vectors_of_new(codes[~mine])
            at_known, at_new = at_known + count, at_new + len(codes) - count
        made = [Made(new, np.flatnonzero(~known), by_new.start, head.new_scale, head.new_bonus)]
        if head.known_dim:
            made.insert(0, Made(some, np.flatnonzero(known)))
        means = {name: float(np.mean(seen)) for name, seen in lengths.items()}
        kept = {**means, **self.lengths}
        return made, Space(self.version, self.dim, self.mapper, head, self.head_of, kept)

    def _blocks(
        self, store: Store, files: Files, rows: pa.Table, features: Features, lengths: dict[str, list[float]]
    ) -> Iterator[tuple[int, FeatureCodes]]:
        """Yield (number of the first row, features in this space's trunk) of a few rows after the other."""
        if not len(rows):
            return
        made_by, names = encode(rows["version"])
        maps = dict(self.mapper.into(store.tree, names.to_pylist(), self.version))
        drifts = [maps[name] for name in names.to_pylist()]
        at = 0
        for path, chosen in files:
            stored = features(store, path)
            for start in range(0, len(chosen), BLOCK):
                block = stored[chosen[start : start + BLOCK]]
                numbers = made_by[at : at + len(block)]
                measured = np.linalg.norm(block[:MEASURED_PER_BLOCK].decode(), axis=1).tolist()
                for number, length in zip(numbers.tolist(), measured, strict=False):
                    lengths.setdefault(names[number].as_py(), []).append(length)
                yield at, in_one_trunk(block, numbers, drifts)
                at += len(block)

    @staticmethod
    def _known(head: DiscriminantHead, rows: pa.Table) -> Mask:
        if not len(rows):
            return np.zeros(0, bool)
        codes, names = encode(rows["class_name"])
        known: Mask = np.array([head.knows(name) for name in names.to_pylist()], bool)[codes]
        return known
