"""Groups are those of a ranking of the whole gallery, whatever its classes are like, and no search is as wide as it."""

from __future__ import annotations

from collections import Counter
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray

from stream_odml.search import grouping
from stream_odml.search.columns import Columns, Growable
from stream_odml.search.exact import Indices, Mask
from stream_odml.search.grouping import grouped
from stream_odml.search.parts import Part
from stream_odml.search.search import SearchSettings
from stream_odml.search.segment import Segment
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.search.vectors import normalise_rows
from stream_odml.store.tables import FloatArray, gallery_rows

DIM, ROUNDING = 8, 5e-7
Sizes = list[int]


class Watched(GallerySnapshot):
    """Notes how wide it was searched."""

    widths: list[int]

    def nearest(self, queries: FloatArray, k: int, mask: Mask | None = None) -> tuple[FloatArray, Indices]:
        self.widths.append(k)
        return super().nearest(queries, k, mask)


def gallery(sizes: Sizes, spread: float, *, dead: int = 0, kind: str = "exact", parts: int = 1) -> Watched:
    """Classes of these sizes around centres of their own; of each part's items scores are of another scale."""
    random = np.random.default_rng(0)
    labels = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    vectors = random.normal(size=(len(sizes), DIM))[labels] + spread * random.normal(size=(len(labels), DIM))
    vectors = vectors.astype(np.float32)
    normalise_rows(vectors)
    n, settings = len(labels), SearchSettings(kind)
    table = gallery_rows(
        item_ids=[f"i{i}" for i in range(n)], class_names=[f"c{label:03d}" for label in labels], shard_ids="s",
        rows=range(n), vectors=vectors, version="v",
    )  # fmt: skip
    columns = Columns().grown(
        table.append_column("txn", pa.array(["t"] * n)) if "txn" not in table.column_names else table
    )
    made = []
    for part in range(parts):
        mine = np.flatnonzero(labels % parts == part)
        segment = Segment.of(Growable.of(vectors[mine]), settings)
        rows = None if parts == 1 else Growable.of(mine)
        made.append(Part(segment, rows, 0, 1.0 - 0.3 * part, 0.2 * part))
    gone = np.sort(random.permutation(n)[:dead])
    nothing = cast(Any, None)
    found = Watched(nothing, nothing, nothing, columns, tuple(made), gone, settings, frozenset())
    object.__setattr__(found, "widths", [])
    return found


def ranked(
    source: Watched, query: NDArray[np.float32], groups: int, size: int, mask: Mask | None
) -> list[tuple[str, str]]:
    """(class, item) of a ranking of all that lives: by loops."""
    living = set(range(source.columns.n)) - set(source.dead.tolist())
    everything = np.arange(source.columns.n)
    scores = source.scores(query[None], everything)[0]
    counts: dict[str, int] = {}
    found = []
    for row in np.argsort(-scores, kind="stable").tolist():
        name = source.columns.name("class_name", row)
        if (
            row not in living
            or (mask is not None and not mask[row])
            or (name not in counts and len(counts) == groups)
        ):
            continue
        counts[name] = counts.get(name, 0) + 1
        if counts[name] <= size:
            found.append((name, f"i{row}"))
    return found


MANY = [1, 2, 1] * 20 + [60] * 10
"""Classes of one and two items among larger ones."""


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
@pytest.mark.parametrize(
    ("sizes", "spread", "groups", "size"),
    [
        (MANY, 1.0, 5, 3),
        (MANY, 5.0, 5, 3),
        (MANY, 0.01, 70, 70),
        (MANY, 1.0, 1000, 1),
        ([900, *[3] * 30], 0.3, 6, 2),
        ([900, *[3] * 30], 3.0, 1, 100),
        ([1], 0.0, 3, 3),
        ([], 0.0, 3, 3),
    ],
)
def test_groups_are_those_of_a_ranking_of_all(
    sizes: Sizes, spread: float, groups: int, size: int, parts: int, masked: bool
) -> None:
    source = gallery(sizes, spread, dead=sum(sizes) // 10, parts=parts)
    random = np.random.default_rng(1)
    queries = random.normal(size=(4, DIM)).astype(np.float32)
    normalise_rows(queries)
    mask = random.random(source.columns.n) < 0.5 if masked else None
    found = grouped(source, queries, groups, size, mask)
    for query, hits in zip(queries, found, strict=True):
        expected = ranked(source, query, groups, size, mask)
        assert Counter(hit.class_name for hit in hits) == Counter(name for name, _ in expected)
        assert len({hit.item_id for hit in hits}) == len(hits)
        # Place by place the same item, or one that only rounding puts before it: a search multiplies in another order.
        scores = source.scores(query[None], np.arange(source.columns.n))[0].tolist()
        for hit, (name, item_id) in zip(hits, expected, strict=True):
            same = (hit.class_name, hit.item_id) == (name, item_id)
            assert same or abs(scores[int(hit.item_id[1:])] - scores[int(item_id[1:])]) < ROUNDING
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)


def item_of(source: Watched, class_name: str) -> FloatArray:
    """The vector of an item of a class, as a query."""
    code = source.columns.names["class_name"].numbers[class_name]
    row = np.flatnonzero(source.columns.array("class_name") == code)[:1]
    return np.ascontiguousarray(source.parts[0].segment.vectors(row))


def test_no_search_is_as_wide_as_the_gallery_for_classes_of_few_items() -> None:
    """The nearest classes have one item, and a group may have two; nor for classes whose second item is far away."""
    few = gallery([1] * 20 + [200] * 20, 0.3)
    apart = gallery([200] * 20, 5.0)
    for source in (few, apart):
        hits = grouped(source, item_of(source, "c000"), 5, 2, None)[0]
        assert len({hit.class_name for hit in hits}) == 5
        assert max(source.widths) <= 5 * 2 * grouping.WIDEN_FACTOR
        assert len(source.widths) <= 2


def test_a_class_that_is_nearest_a_thousand_times_hides_no_other() -> None:
    source = gallery([5000, *[2] * 10], 0.02)
    hits = grouped(source, item_of(source, "c000"), 4, 2, None)[0]
    assert len({hit.class_name for hit in hits}) == 4
    assert max(source.widths) < 500


@pytest.mark.parametrize("kind", ["ivf", "hnsw", "fp16"])
def test_an_index_gives_whole_groups(kind: str) -> None:
    source = gallery([1, 2] * 10 + [200] * 20, 1.0, kind=kind)
    queries = np.random.default_rng(1).normal(size=(4, DIM)).astype(np.float32)
    normalise_rows(queries)
    sizes = np.bincount(source.columns.array("class_name"))
    numbers = source.columns.names["class_name"].numbers
    for hits in grouped(source, queries, 5, 3, None):
        names = [hit.class_name for hit in hits]
        assert len(set(names)) == 5
        assert all(names.count(name) == min(3, sizes[numbers[name]]) for name in names)
