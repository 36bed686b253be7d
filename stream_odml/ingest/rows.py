"""Chosen rows of a shard as pixels, block by block: what fills the training cache.

Invariant: a pure function of (reference, rows, size, limit). Ray runs a read task again after a kill and drops
what came before by count, so the same call has to give the same blocks in the same order. A row that cannot be
had is a `RowProblem` among the blocks: it costs itself, never the rows around it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_odml.ingest.decode import Pixels, decode_image
from stream_odml.ingest.fields import PATH
from stream_odml.ingest.rawrow import ANY_CONTENT, Content
from stream_odml.ingest.reading import RawItem, read_shard, with_path
from stream_odml.ingest.reasons import FIRST_BYTES, BadImage, Reason, RowProblem
from stream_odml.ingest.shard import ShardRef
from stream_odml.storage.reading import StorageOptions

NO_IMAGES = "an image, but this stream takes vectors (model.backbone: none); land the vector of the image"


class Block(NamedTuple):
    """Rows of one shard: `rows` [b] int32, `pixels` [b, size, size, 3] uint8."""

    rows: NDArray[np.int32]
    pixels: Pixels


class Decoded(NamedTuple):
    """A usable row and its pixels [size, size, 3] uint8."""

    item: RawItem
    pixels: Pixels


def decode_shard(
    ref: ShardRef,
    size: int,
    max_pixels: int,
    storage_options: StorageOptions | None = None,
    contents: Sequence[Content] = ANY_CONTENT,
) -> Iterator[Decoded | RawItem | RowProblem]:
    """Yield every row of a shard, its image decoded, or its problem: the first pass over it. Rows that have no image
    come as they are. Errors as `read_shard`."""
    for found in read_shard(ref, storage_options, contents):
        if isinstance(found, RowProblem) or not found.image:
            yield found
        elif "image" in contents:
            yield _decode(found, size, max_pixels)
        else:
            yield RowProblem(found.row, Reason.MISSING_VECTOR, NO_IMAGES, found.image[:FIRST_BYTES])


def _decode(found: RawItem | RowProblem, size: int, max_pixels: int) -> Decoded | RowProblem:
    if isinstance(found, RowProblem):
        return found
    try:
        return Decoded(found, decode_image(found.image, size, max_pixels))
    except BadImage as error:
        detail = with_path(found.attributes.get(PATH), error.detail)
        return RowProblem(found.row, error.reason, detail, found.image[:FIRST_BYTES])


def decode_rows(
    ref: ShardRef,
    rows: Collection[int],
    size: int,
    max_pixels: int,
    batch: int = 256,
    storage_options: StorageOptions | None = None,
) -> Iterator[Block | RowProblem]:
    """Yield the listed rows, ascending, in blocks, and a problem for each of them that cannot be used any more.

    The last block, but one of a single row, comes only once the whole shard was read and found to be the one that was
    indexed. Errors as `read_shard`: after one nothing that came before may be used.
    """
    wanted = {int(row) for row in rows}
    block: list[Decoded] = []
    for found in read_shard(ref, storage_options):
        if found.row not in wanted:
            continue
        wanted.discard(found.row)
        one = _decode(found, size, max_pixels)
        if isinstance(one, RowProblem):
            yield one
            continue
        if len(block) == batch:
            yield _block(block)
            block = []
        block.append(one)
        if batch == 1:
            yield _block([block.pop()])
    if block:
        yield _block(block)
    for row in sorted(wanted):
        yield RowProblem(row, Reason.CHANGED_WHILE_READ, f"{ref.shard_id} has no such row any more")


def _block(decoded: Sequence[Decoded]) -> Block:
    rows = np.array([one.item.row for one in decoded], np.int32)
    return Block(rows, np.stack([one.pixels for one in decoded]))
