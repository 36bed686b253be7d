"""Sums by class over all that was learnt, from which the head is solved: they merge, and they can be taken out again.

Counts, sums of φ of each class, and one sum of outer products of φ over all classes; the scatter within classes follows
from them. φ is on a grid of whole numbers (`Lift`), so sums of up to 8 million items are exact: the order of items,
tasks and ranks does not matter to the last bit, and after `minus` the sums are those of a stream that never saw the
items. Nothing here is of classes times classes, nor a matrix for each class.
"""

# n items   C classes   E = D + M entries of φ

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.lift import GRID, Float64s, Lift
from stream_odml.learn.packing import Array, pack, unpack

_BLOCK = 2048
_ROUNDED = 64
"""Roundings in a row that `equals` looks past: whole numbers below 2^53 / 64 are compared to the last bit."""


@dataclass(frozen=True, eq=False)
class ClassSums:
    """Sums of stored features under one trunk. Immutable: every change returns new sums."""

    lift: Lift
    names: tuple[str, ...]
    """Classes with an item, sorted."""
    counts_C: NDArray[np.int64]
    sums_CE: Float64s
    """Sum of GRID * φ by class."""
    products_EE: Float64s
    """Sum of the outer products of GRID * φ over all items."""

    def __post_init__(self) -> None:
        C, E = len(self.names), self.lift.out_dim
        shapes = (self.counts_C.shape, self.sums_CE.shape, self.products_EE.shape)
        if shapes != ((C,), (C, E), (E, E)) or list(self.names) != sorted(set(self.names)):
            raise ValueError(
                f"sums of {C} classes of dimension {E} with counts, sums and products of shape {shapes} "
                "and names that must be sorted and differ"
            )
        if (self.counts_C < 1).any():
            raise ValueError(f"a class with {self.counts_C.min()} items in its sums; expected at least 1")

    @classmethod
    def empty(cls, lift: Lift) -> ClassSums:
        """Return the sums of no item."""
        E = lift.out_dim
        return cls(lift, (), np.empty(0, np.int64), np.empty((0, E)), np.zeros((E, E)))

    @classmethod
    def of(cls, lift: Lift, features: FeatureCodes, classes: Sequence[str]) -> ClassSums:
        """Sum items as stored, with the class of each; a memory map is read block by block. Raises ValueError where
        there are more or fewer classes than items."""
        if len(features) != len(classes):
            raise ValueError(f"{len(classes)} classes of {len(features)} items; expected one of each")
        names = sorted(set(classes))
        row_of = {name: row for row, name in enumerate(names)}
        row_n = np.fromiter((row_of[name] for name in classes), np.intp, len(classes))
        C, E = len(names), lift.out_dim
        sums_CE, products_EE = np.zeros((C, E)), np.zeros((E, E))
        for at in range(0, len(features), _BLOCK):
            block = slice(at, at + _BLOCK)
            phi_nE = lift.integers(features[block])
            products_EE += phi_nE.T @ phi_nE
            _add_rows(sums_CE, row_n[block], phi_nE)
        counts_C = np.bincount(row_n, minlength=C).astype(np.int64)
        return cls(lift, tuple(names), counts_C, sums_CE, products_EE)

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.names)

    @property
    def n_items(self) -> int:
        """Return N, the number of items."""
        return int(self.counts_C.sum())

    def plus(self, *others: ClassSums) -> ClassSums:
        """Return the sums of the items of all, in any order; a class that comes again is one class."""
        return self._combined(others, 1)

    def minus(self, other: ClassSums) -> ClassSums:
        """Return the sums without the items of `other`, each of which must be in them: an item, a class or a shard
        that is erased. A class goes with its last item.

        ValueError for a class or more items than there are, and where a class that is empty leaves something behind:
        the items taken out are then not those that were added.
        """
        missing = sorted(set(other.names) - set(self.names))
        if missing:
            raise ValueError(
                f"class {missing[0]!r} is not in the sums, so no item of it can be taken out of them"
            )
        return self._combined((other,), -1)

    def _combined(self, others: Sequence[ClassSums], sign: int) -> ClassSums:
        for other in others:
            if other.lift != self.lift:
                raise ValueError(
                    f"sums of {other.lift} with sums of {self.lift}; they must be of one trunk and lift"
                )
        names = sorted({*self.names, *(name for other in others for name in other.names)})
        row_of = {name: row for row, name in enumerate(names)}
        counts_C, sums_CE = np.zeros(len(names), np.int64), np.zeros((len(names), self.lift.out_dim))
        products_EE = self.products_EE.copy()
        for part, factor in [(self, 1), *((other, sign) for other in others)]:
            rows = [row_of[name] for name in part.names]
            counts_C[rows] += factor * part.counts_C
            sums_CE[rows] += part.sums_CE if factor == 1 else -part.sums_CE
            if part is not self:
                products_EE += part.products_EE if factor == 1 else -part.products_EE
        return self._without_empty(names, counts_C, sums_CE, products_EE)

    def _without_empty(
        self, names: list[str], counts_C: NDArray[np.int64], sums_CE: Float64s, products_EE: Float64s
    ) -> ClassSums:
        filled = counts_C > 0
        if filled.all():
            return ClassSums(self.lift, tuple(names), counts_C, sums_CE, products_EE)
        few = int(counts_C.argmin())
        if counts_C[few] < 0:
            raise ValueError(
                f"{-counts_C[few]} more items of class {names[few]!r} taken out than are in the sums; "
                "recompute the sums from the stored features"
            )
        left_C = np.abs(sums_CE[~filled]).max(axis=1, initial=0.0)
        if left_C.any():  # whole numbers leave nothing
            name = names[int(np.flatnonzero(~filled)[left_C.argmax()])]
            raise ValueError(
                f"class {name!r} is empty, but its sum is not zero: the items taken out are not those that were "
                "added; recompute the sums from the stored features"
            )
        kept = tuple(name for name, some in zip(names, filled, strict=True) if some)
        return ClassSums(self.lift, kept, counts_C[filled], sums_CE[filled], products_EE)

    def equals(self, other: ClassSums) -> bool:
        """Return whether these are the sums of the same items: to the last bit, but for what float64 rounds off
        products of more than 8 million items. One image among very many others is seen."""
        if self.lift != other.lift or self.names != other.names:
            return False
        rounded = _ROUNDED * 2.0**-53 * GRID**2 * self.n_items
        return (
            np.array_equal(self.counts_C, other.counts_C)
            and np.array_equal(self.sums_CE, other.sums_CE)
            and bool((np.abs(self.products_EE - other.products_EE) <= rounded).all())
        )

    def narrowed(self, width: int) -> ClassSums:
        """Return the sums that a narrower lift would have had, from the same numbers. ValueError for a wider one."""
        if width > self.lift.width:
            raise ValueError(
                f"a lift of {width} from sums of {self.lift.width}; sum the stored features again"
            )
        lift = Lift(self.lift.dim, width, self.lift.seed)
        E = lift.out_dim
        return ClassSums(lift, self.names, self.counts_C, self.sums_CE[:, :E], self.products_EE[:E, :E])

    def without_means(self, names: Iterable[str]) -> ClassSums:
        """Return the sums as if these classes were unknown: their means are gone, and what remains of them is how
        their items scatter within each. Names that are not in the sums change nothing."""
        dropped = set(names)
        out_C = np.fromiter((name in dropped for name in self.names), bool, len(self))
        scaled_cE = self.sums_CE[out_C] / np.sqrt(self.counts_C[out_C])[:, None]
        left = tuple(name for name in self.names if name not in dropped)
        products_EE = self.products_EE - scaled_cE.T @ scaled_cE
        return ClassSums(self.lift, left, self.counts_C[~out_C], self.sums_CE[~out_C], products_EE)

    def mean(self) -> Float64s:
        """Return m, the mean of φ over all items, [E]; zeros of no item."""
        mean_E: Float64s = self.sums_CE.sum(axis=0) / (GRID * max(self.n_items, 1))
        return mean_E

    def class_means(self) -> Float64s:
        """Return m_c, [C, E]."""
        means_CE: Float64s = self.sums_CE / (GRID * self.counts_C[:, None])
        return means_CE

    def scatter(self) -> tuple[Float64s, Float64s]:
        """Return the scatter within classes S_w and between them Σ n_c (m_c - m)(m_c - m)ᵀ, both [E, E]."""
        scaled_CE = self.sums_CE / np.sqrt(self.counts_C)[:, None]
        of_means_EE = scaled_CE.T @ scaled_CE
        total_E = self.sums_CE.sum(axis=0)
        between_EE = of_means_EE - np.outer(total_E, total_E) / max(self.n_items, 1)
        return (self.products_EE - of_means_EE) / GRID**2, between_EE / GRID**2

    def to_bytes(self) -> bytes:
        """Return bytes for `from_bytes`. Whole numbers take half the space where they fit 32 bits."""
        arrays: dict[str, Array] = {
            "counts": self.counts_C,
            "sums": _compact(self.sums_CE),
            "products": self.products_EE[np.triu_indices(self.lift.out_dim)],
        }
        return pack("class-sums", arrays, lift=asdict(self.lift), names=self.names)

    @classmethod
    def from_bytes(cls, data: bytes) -> ClassSums:
        """Read the bytes of `to_bytes`. Raises BadArtifact where they are damaged."""
        _, a, meta = unpack(data, ("class-sums",))
        lift = Lift(**meta["lift"])
        products_EE = np.zeros((lift.out_dim, lift.out_dim))
        upper = np.triu_indices(lift.out_dim)
        products_EE[upper] = a["products"]
        products_EE.T[upper] = a["products"]
        return cls(lift, tuple(meta["names"]), a["counts"], a["sums"].astype(np.float64), products_EE)


def _add_rows(sums_CE: Float64s, row_n: NDArray[np.intp], phi_nE: Float64s) -> None:
    """Add φ to the sums of its row; sorted by class first, as numpy's own loop over single rows is slow."""
    order = np.argsort(row_n, kind="stable")
    rows, starts = np.unique(row_n[order], return_index=True)
    if len(rows):
        sums_CE[rows] += np.add.reduceat(phi_nE[order], starts, axis=0)


def _compact(values: Float64s) -> Array:
    limit = np.abs(values).max(initial=0.0)
    whole = limit < 2**31 and bool((values == np.rint(values)).all())
    return values.astype(np.int32) if whole else values
