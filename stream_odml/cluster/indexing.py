"""Tier 1 of one shard: read, decode, embed with a given model, and say what could not be used.

Pure but for two derived files a shard, thumbnails and held-out images, which are written under the shard's own
name before the commit that makes its rows visible; a repetition writes the same bytes.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.gallery.files import Files
from stream_odml.gallery.tables import gallery_rows, quarantine_rows
from stream_odml.learn.embedder import Embedder, embed
from stream_odml.stream.decode import encode_image
from stream_odml.stream.holdout import is_held_out
from stream_odml.stream.reading import RawItem
from stream_odml.stream.reasons import BadShard, RowProblem
from stream_odml.stream.rows import Decoded, decode_shard
from stream_odml.stream.shard import ShardRef
from stream_odml.stream.storage import StorageOptions

CHUNK = 256
"""Images decoded before they are embedded together: bounds the memory of a shard of any size."""
WHOLE_SHARD = -1
"""Row number of a quarantine row that stands for its whole shard."""


@dataclass(frozen=True)
class IndexOptions:
    """What indexing needs of the configuration."""

    max_pixels: int
    thumbnails: bool
    held_out: float
    source_options: StorageOptions | None = None


@dataclass
class IndexedShard:
    """Outcome of one shard: gallery and quarantine rows (Arrow), and the trainable images of each class."""

    ref: ShardRef
    rows: pa.Table
    quarantine: pa.Table
    classes: Counter[str] = field(default_factory=Counter)
    trainable: Counter[str] = field(default_factory=Counter)


@dataclass
class _Findings:
    """What has been found in a shard so far. Bytes of an image are kept only where it is held out."""

    items: list[RawItem] = field(default_factory=list)
    held_out: list[bool] = field(default_factory=list)
    images: list[bytes] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
    thumbnails: list[bytes] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)


def index_shard(
    ref: ShardRef, embedder: Embedder, version: str, files: Files, options: IndexOptions
) -> IndexedShard:
    """Index one shard with ``embedder``, the model of ``version``.

    A shard that is refused as a whole gives no gallery row and one quarantine row, numbered WHOLE_SHARD.
    Raises TransientReadError when its bytes cannot be had now.
    """
    try:
        found = _read(ref, embedder, options)
    except BadShard as error:
        found = _Findings(problems=[RowProblem(WHOLE_SHARD, error.reason, error.detail, error.first_bytes)])
    _keep_files(ref, found, files)
    return IndexedShard(
        ref,
        _rows(ref, found, embedder.spec.dim, version),
        _quarantine(ref, found.problems),
        Counter(item.class_name for item in found.items),
        Counter(item.class_name for item, held in zip(found.items, found.held_out, strict=True) if not held),
    )


def _read(ref: ShardRef, embedder: Embedder, options: IndexOptions) -> _Findings:
    found = _Findings()
    decoded = _usable(
        decode_shard(ref, embedder.spec.image_size, options.source_options, options.max_pixels),
        found.problems,
    )
    while chunk := list(islice(decoded, CHUNK)):
        found.vectors.append(embed(embedder, np.stack([one.pixels for one in chunk])))
        for item, pixels in chunk:
            held = is_held_out(item.item_id, options.held_out)
            found.held_out.append(held)
            found.images.append(item.image if held else b"")
            if options.thumbnails:
                found.thumbnails.append(encode_image(pixels))
            found.items.append(_without_image(item))
    return found


def _usable(decoded: Iterable[Decoded | RowProblem], problems: list[RowProblem]) -> Iterator[Decoded]:
    for entry in decoded:
        if isinstance(entry, RowProblem):
            problems.append(entry)
        else:
            yield entry


def _without_image(item: RawItem) -> RawItem:
    return RawItem(item.row, item.item_id, item.class_name, b"", item.attributes, item.time)


def _keep_files(ref: ShardRef, found: _Findings, files: Files) -> None:
    ids = [item.item_id for item in found.items]
    if found.thumbnails:
        names = [item.class_name for item in found.items]  # so that a class can be forgotten here too
        images = pa.array(found.thumbnails, pa.binary())
        table = pa.table({"item_id": ids, "class_name": names, "image": images})
        files.write(f"thumbnails/{ref.shard_id}.parquet", _parquet(table))
    if any(found.held_out):
        columns = {
            "item_id": ids,
            "class_name": [item.class_name for item in found.items],
            "image": pa.array(found.images, pa.binary()),
        }
        files.write(f"holdout/{ref.shard_id}.parquet", _parquet(pa.table(columns).filter(found.held_out)))


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def _rows(ref: ShardRef, found: _Findings, dim: int, version: str) -> pa.Table:
    return gallery_rows(
        item_ids=[item.item_id for item in found.items],
        class_names=[item.class_name for item in found.items],
        shard_ids=ref.shard_id,
        rows=[item.row for item in found.items],
        vectors=np.concatenate(found.vectors) if found.vectors else np.empty((0, dim), np.float32),
        version=version,
        held_out=found.held_out,
        attributes=[item.attributes for item in found.items],
        times=[item.time for item in found.items],
    )


def _quarantine(ref: ShardRef, problems: list[RowProblem]) -> pa.Table:
    return quarantine_rows(
        shard_ids=[ref.shard_id] * len(problems),
        rows=[problem.row for problem in problems],
        reasons=[str(problem.reason) for problem in problems],
        details=[problem.detail for problem in problems],
        first_bytes=[problem.first_bytes for problem in problems],
    )
