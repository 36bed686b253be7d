"""The pixel cache: every row in its place whatever order it comes in, and never taken for whole when it is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_odml.ingest.cache import CacheMember, PixelCache

SIZE = 4
MEMBERS = [
    CacheMember("a-1", [0, 2, 5, 6], ["cat", "dog", "cat", "eel"]),
    CacheMember("b-2", [], []),
    CacheMember("c-3", list(range(30)), ["dog"] * 30),
]


def pixels_of(member: int, rows: np.ndarray) -> np.ndarray:
    """An oracle that any row can be told by."""
    value = (member * 100 + np.asarray(rows)) % 251
    return np.broadcast_to(value[:, None, None, None], (len(rows), SIZE, SIZE, 3)).astype(np.uint8)


def fill(cache: PixelCache, seed: int = 0, blocks: int = 100) -> None:
    random = np.random.default_rng(seed)
    todo = [
        (member, block)
        for member, rows in cache.missing()
        for block in np.array_split(random.permutation(rows), 5)
    ]
    for at in random.permutation(len(todo))[:blocks]:
        member, rows = todo[at]
        cache.write(member, rows, pixels_of(member, rows))


def check(cache: PixelCache) -> None:
    assert len(cache) == 34
    expected = np.concatenate([pixels_of(0, np.array([0, 2, 5, 6])), pixels_of(2, np.arange(30))])
    assert (cache.pixels == expected).all()
    assert [cache.class_names[label] for label in cache.labels[:4]] == ["cat", "dog", "cat", "eel"]
    assert list(zip(cache.member_index.tolist(), cache.row.tolist(), strict=True))[3:6] == [
        (0, 6),
        (2, 0),
        (2, 1),
    ]


@pytest.mark.parametrize("seed", range(5))
def test_blocks_in_any_order_land_in_order(tmp_path: Path, seed: int) -> None:
    cache = PixelCache(tmp_path / "c", MEMBERS, SIZE)
    fill(cache, seed)
    cache.finish()
    check(cache)
    check(PixelCache(tmp_path / "c", MEMBERS, SIZE))


def test_batches_are_contiguous_copies_in_the_order_asked(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "c", MEMBERS, SIZE)
    fill(cache)
    cache.finish()
    wanted = np.array([33, 0, 7, 0])
    batch = cache.batch(wanted)
    assert batch.flags.c_contiguous
    assert batch.flags.writeable
    assert (batch == cache.pixels[wanted]).all()


def test_an_incomplete_cache_says_so_and_is_taken_up_again(tmp_path: Path) -> None:
    first = PixelCache(tmp_path / "c", MEMBERS, SIZE)
    fill(first, blocks=4)
    with pytest.raises(ValueError, match="of 34 rows are missing"):
        first.finish()
    again = PixelCache(tmp_path / "c", MEMBERS, SIZE)
    assert 0 < sum(len(rows) for _, rows in again.missing()) < 34
    with pytest.raises(ValueError, match="incomplete"):
        _ = again.pixels
    fill(again)
    again.finish()
    check(again)
    assert again.missing() == []


@pytest.mark.parametrize("changed", ["size", "rows", "classes", "shard"])
def test_another_plan_starts_anew(tmp_path: Path, changed: str) -> None:
    cache = PixelCache(tmp_path / "c", MEMBERS, SIZE)
    fill(cache)
    cache.finish()
    head = {
        "rows": CacheMember("a-1", [0, 2, 5, 7], MEMBERS[0].class_names),
        "classes": CacheMember("a-1", MEMBERS[0].rows, ["cat"] * 4),
        "shard": CacheMember("a-9", MEMBERS[0].rows, MEMBERS[0].class_names),
    }.get(changed, MEMBERS[0])
    other = PixelCache(tmp_path / "c", [head, *MEMBERS[1:]], 5 if changed == "size" else SIZE)
    assert not other.is_complete
    assert sum(len(rows) for _, rows in other.missing()) == 34


def test_foreign_rows_and_shapes_are_refused(tmp_path: Path) -> None:
    cache = PixelCache(tmp_path / "c", MEMBERS, SIZE)
    for rows in ([1], [7], [0, 99]):
        with pytest.raises(ValueError, match="outside the plan"):
            cache.write(0, np.array(rows), pixels_of(0, np.array(rows)))
    with pytest.raises(ValueError, match="expected uint8"):
        cache.write(0, np.array([0]), np.zeros((1, 5, 5, 3), np.uint8))
    with pytest.raises(ValueError, match="no rows"):
        PixelCache(tmp_path / "d", MEMBERS[1:2], SIZE)
    with pytest.raises(ValueError, match="ascend"):
        CacheMember("a", [1, 0], ["x", "y"])
