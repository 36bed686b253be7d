"""Items that are compared alike: of a discriminant head those of known classes by its known part, others by its new
part or by the same with a bonus; of an embedder that has no such head all by the whole of an embedding."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stream_odml.search.columns import Columns, Growable
from stream_odml.search.exact import Indices, Mask, renumbered
from stream_odml.search.index_kinds import IVF, Clusters
from stream_odml.search.segment import Segment
from stream_odml.store.tables import FloatArray


@dataclass(frozen=True, eq=False)
class Part:
    """Items that one part of an embedding is compared with."""

    segment: Segment
    rows: Growable | None
    """The number of each among all items, ascending; None where it is all of them."""
    first: int
    """Where the part begins in an embedding."""
    scale: float
    bonus: float
    """Factor of the cosine of its items, and what is added then, which make it comparable with those of other parts."""

    def numbers(self) -> Indices:
        """Return the numbers of its items among all."""
        return np.arange(self.segment.n) if self.rows is None else self.rows.rows

    def nearest(self, queries: FloatArray, k: int, mask: Mask | None) -> tuple[FloatArray, Indices]:
        """Return scores and numbers [nq, k] for embeddings [nq, dim]; `mask` over all items."""
        numbers = self.numbers()
        scores, rows = self.segment.nearest(self.own(queries), k, None if mask is None else mask[numbers])
        return self.scored(scores), renumbered(rows, numbers)

    def own(self, queries: FloatArray) -> FloatArray:
        """Return what of embeddings [nq, dim] its items are compared with."""
        return np.ascontiguousarray(queries[:, self.first : self.first + self.segment.dim])

    def scored(self, cosines: FloatArray) -> FloatArray:
        """Return scores that are comparable with those of other parts."""
        scores: FloatArray = cosines * np.float32(self.scale) + np.float32(self.bonus)
        return scores

    def places(self, rows: Indices) -> tuple[Indices, Indices]:
        """Return which of `rows` (numbers among all) are its items, and where they lie in its segment."""
        if self.rows is None:
            return np.arange(len(rows)), rows
        numbers = self.numbers()
        place = np.searchsorted(numbers, rows)
        mine = (
            np.flatnonzero(numbers[np.minimum(place, len(numbers) - 1)] == rows)
            if len(numbers)
            else place[:0]
        )
        return mine, place[mine]

    def grown(self, vectors: FloatArray, numbers: Indices) -> Part:
        """Return a part with items behind the others."""
        rows = self.rows.grown(numbers) if self.rows is not None else None
        return replace(self, segment=self.segment.grown(vectors) if len(vectors) else self.segment, rows=rows)

    def taken(self, kept: Indices) -> Part:
        """Return a part with only items of `kept`, numbers among all, which are then counted from 0."""
        here = np.flatnonzero(np.isin(self.numbers(), kept))
        rows = None if self.rows is None else Growable.of(np.searchsorted(kept, self.rows.rows[here]))
        return replace(self, segment=self.segment.taken(here), rows=rows)

    def clusters(self, before: Columns, now: Columns, numbers: Indices | None) -> Clusters | None:
        """Return what its index says of items `numbers` (all) of `now`, where it was that of `before`."""
        main = self.segment.main
        if main is None or main.kind != IVF:
            return None
        held = before.item_ids.column
        held = held.slice(0, main.n) if self.rows is None else held.take(pa.array(self.numbers()[: main.n]))
        wanted = now.item_ids.column if numbers is None else now.item_ids.column.take(pa.array(numbers))
        rows = pc.fill_null(pc.index_in(wanted, value_set=held.combine_chunks()), -1)
        return main.clusters(rows.to_numpy().astype(np.int64))
