"""Chosen rows as pixels: the same blocks at every call, exactly the rows asked for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.ingest.cache import CacheMember, PixelCache
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.reasons import BadShard, Reason, RowProblem
from stream_odml.ingest.rows import Block, Decoded, decode_rows, decode_shard
from stream_odml.pipeline.holdout import is_held_out
from tests.ingest.helpers import only, some_items

MAX_PIXELS = 10_000


def blocks_of(parts: Iterable[Block | RowProblem]) -> list[Block]:
    """All parts, none of which may be a problem."""
    found = list(parts)
    blocks = [part for part in found if isinstance(part, Block)]
    assert len(blocks) == len(found)
    return blocks


def test_listed_rows_in_blocks_and_the_same_again(tmp_path: Path) -> None:
    items = some_items(50)
    land_items(tmp_path, "s", items)
    wanted = [1, 4, 9, 16, 25, 36, 49]
    blocks = blocks_of(decode_rows(only(tmp_path), wanted[::-1], 8, MAX_PIXELS, batch=3))
    assert [block.rows.tolist() for block in blocks] == [[1, 4, 9], [16, 25, 36], [49]]
    for block in blocks:
        for row, pixels in zip(block.rows, block.pixels, strict=True):
            assert (pixels == decode_image(items[row].image, 8, DEFAULT_MAX_PIXELS)).all()
    again = blocks_of(decode_rows(only(tmp_path), wanted, 8, MAX_PIXELS, batch=3))
    assert all(
        (a.pixels == b.pixels).all() and (a.rows == b.rows).all() for a, b in zip(blocks, again, strict=True)
    )


def test_a_listed_row_that_cannot_be_had_is_a_problem_of_its_own(tmp_path: Path) -> None:
    land_items(tmp_path, "s", [*some_items(10), NewItem(b"no image", "class 0", "bad")])
    found = list(decode_rows(only(tmp_path), [9, 10, 11], 8, MAX_PIXELS))
    problems = {part.row: part.reason for part in found if isinstance(part, RowProblem)}
    assert problems == {10: Reason.NOT_AN_IMAGE, 11: Reason.CHANGED_WHILE_READ}
    assert [part.rows.tolist() for part in found if isinstance(part, Block)] == [[9]]


def test_the_last_block_comes_once_the_shard_is_known_to_be_unchanged(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(20))
    ref = only(tmp_path)
    other = Path(ref.uri).read_bytes().replace(b"item-19", b"item-91")
    given = []
    parts = decode_rows(ref, range(20), 8, MAX_PIXELS, batch=10)
    given.append(next(parts))
    Path(ref.uri).write_bytes(other)
    with pytest.raises(BadShard, match="changed_while_read"):
        given.extend(parts)
    assert len(given) == 1


def test_from_landing_to_the_cache(tmp_path: Path) -> None:
    land_items(tmp_path / "inbox", "s", [*some_items(40), NewItem(b"", "class 0")])
    ref = only(tmp_path / "inbox")
    first = list(decode_shard(ref, 8, MAX_PIXELS))
    assert [type(row) for row in first] == [Decoded] * 40 + [RowProblem]
    kept = [row for row in first if isinstance(row, Decoded) and not is_held_out(row.item.item_id, 0.25)]
    assert 20 < len(kept) < 40
    member = CacheMember(ref.shard_id, [row.item.row for row in kept], [row.item.class_name for row in kept])
    cache = PixelCache(tmp_path / "cache", [member], 8)
    for block in blocks_of(decode_rows(ref, member.rows, 8, MAX_PIXELS, batch=7)):
        cache.write(0, block.rows, block.pixels)
    cache.finish()
    assert (cache.pixels == np.stack([row.pixels for row in kept])).all()
