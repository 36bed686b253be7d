"""Chosen rows as pixels: the same blocks at every call, exactly the rows asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_odml.stream.cache import CacheMember, PixelCache
from stream_odml.stream.decode import decode_image
from stream_odml.stream.holdout import is_held_out
from stream_odml.stream.landing import NewItem, land_items
from stream_odml.stream.reasons import BadShard, Reason, RowProblem
from stream_odml.stream.rows import Decoded, decode_rows, decode_shard
from tests.stream.helpers import only, some_items


def test_listed_rows_in_blocks_and_the_same_again(tmp_path: Path) -> None:
    items = some_items(50)
    land_items(tmp_path, "s", items)
    wanted = [1, 4, 9, 16, 25, 36, 49]
    blocks = list(decode_rows(only(tmp_path), wanted[::-1], 8, batch=3))
    assert [block.rows.tolist() for block in blocks] == [[1, 4, 9], [16, 25, 36], [49]]
    for block in blocks:
        for row, pixels in zip(block.rows, block.pixels, strict=True):
            assert (pixels == decode_image(items[row].image, 8)).all()
    again = list(decode_rows(only(tmp_path), wanted, 8, batch=3))
    assert all(
        (a.pixels == b.pixels).all() and (a.rows == b.rows).all() for a, b in zip(blocks, again, strict=True)
    )


def test_a_predicate_or_everything_usable(tmp_path: Path) -> None:
    items = [*some_items(10), NewItem(b"no image", "class 0", "bad")]
    land_items(tmp_path, "s", items)
    ref = only(tmp_path)
    (block,) = decode_rows(ref, lambda item: item.class_name == "class 1", 8)
    assert block.rows.tolist() == [1, 4, 7]
    (block,) = decode_rows(ref, None, 8)
    assert block.rows.tolist() == list(range(10))
    with pytest.raises(BadShard) as refusal:
        list(decode_rows(ref, [9, 10], 8))
    assert refusal.value.reason is Reason.CHANGED_WHILE_READ
    with pytest.raises(BadShard, match="1 of the 2 rows"):
        list(decode_rows(ref, [9, 11], 8))


def test_from_landing_to_the_cache(tmp_path: Path) -> None:
    land_items(tmp_path / "inbox", "s", [*some_items(40), NewItem(b"", "class 0")])
    ref = only(tmp_path / "inbox")
    first = list(decode_shard(ref, 8))
    assert [type(row) for row in first] == [Decoded] * 40 + [RowProblem]
    kept = [row for row in first if isinstance(row, Decoded) and not is_held_out(row.item.item_id, 0.25)]
    assert 20 < len(kept) < 40
    member = CacheMember(ref.shard_id, [row.item.row for row in kept], [row.item.class_name for row in kept])
    cache = PixelCache(tmp_path / "cache", [member], 8)
    for block in decode_rows(ref, member.rows, 8, batch=7):
        cache.write(0, block.rows, block.pixels)
    cache.finish()
    assert (cache.pixels == np.stack([row.pixels for row in kept])).all()
