"""Chosen rows of a shard as pixels, block by block: what fills the training cache.

Invariant: a pure function of (reference, rows, size). Ray runs a read task again after a kill and drops
what came before by count, so the same call has to give the same blocks in the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stream_odml.stream.decode import Pixels, decode_image
from stream_odml.stream.rawrow import DEFAULT_MAX_PIXELS
from stream_odml.stream.reading import RawItem, read_shard
from stream_odml.stream.reasons import BadImage, BadShard, Reason, RowProblem
from stream_odml.stream.shard import ShardRef
from stream_odml.stream.storage import StorageOptions


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
    storage_options: StorageOptions | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> Iterator[Decoded | RowProblem]:
    """Every row of a shard, decoded, or its problem: the first pass over a shard. Errors as `read_shard`."""
    for found in read_shard(ref, storage_options):
        if isinstance(found, RowProblem):
            yield found
            continue
        try:
            yield Decoded(found, decode_image(found.image, size, max_pixels))
        except BadImage as error:
            yield RowProblem(found.row, error.reason, error.detail, found.image[:32])


def decode_rows(
    ref: ShardRef,
    rows: Collection[int] | Callable[[RawItem], bool] | None,
    size: int,
    batch: int = 256,
    storage_options: StorageOptions | None = None,
) -> Iterator[Block]:
    """The rows that are listed (or for which the predicate holds; None: all usable ones), ascending, in
    blocks.

    Raises BadShard(changed_while_read) when a listed row cannot be used any more; other errors as
    `read_shard`. What was read before an error must not be used.
    """
    wanted = frozenset(int(row) for row in rows) if rows is not None and not callable(rows) else None
    given = 0
    for block in _blocks(_decoded(ref, rows, wanted, size, storage_options), batch):
        given += len(block.rows)
        yield block
    if wanted is not None and given != len(wanted):
        raise BadShard(
            Reason.CHANGED_WHILE_READ, f"{ref.shard_id} has {given} of the {len(wanted)} rows asked for"
        )


def _decoded(
    ref: ShardRef,
    rows: Collection[int] | Callable[[RawItem], bool] | None,
    wanted: frozenset[int] | None,
    size: int,
    options: StorageOptions | None,
) -> Iterator[tuple[int, Pixels]]:
    for found in read_shard(ref, options):
        if isinstance(found, RowProblem):
            continue
        if (wanted is not None and found.row not in wanted) or (callable(rows) and not rows(found)):
            continue
        try:
            yield found.row, decode_image(found.image, size)
        except BadImage as error:
            if rows is not None:
                raise BadShard(
                    Reason.CHANGED_WHILE_READ, f"{ref.shard_id} row {found.row}: {error}"
                ) from error


def _blocks(decoded: Iterator[tuple[int, Pixels]], batch: int) -> Iterator[Block]:
    rows: list[int] = []
    pixels: list[Pixels] = []
    for row, image in decoded:
        rows.append(row)
        pixels.append(image)
        if len(rows) == batch:
            yield Block(np.array(rows, np.int32), np.stack(pixels))
            rows, pixels = [], []
    if rows:
        yield Block(np.array(rows, np.int32), np.stack(pixels))
