"""Tier 1 of one shard: read, decode, embed with a given model, and say what could not be used. Vectors are taken as
they are, and labels are put on items that are stored.

Pure but for two derived files a shard, thumbnails and held-out images, which are written under the shard's own
name before the commit that makes its rows visible; a repetition writes the same bytes.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from stream_odml.ingest.decode import encode_image
from stream_odml.ingest.rawrow import Content
from stream_odml.ingest.reading import UNLABELLED, RawItem
from stream_odml.ingest.reasons import BadShard, Reason, RowProblem
from stream_odml.ingest.rows import Decoded, decode_shard
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.vectors import Vector
from stream_odml.learn.embedder import Embedder, embed
from stream_odml.learn.feature_codes import FeatureFormat
from stream_odml.pipeline.holdout import is_held_out
from stream_odml.pipeline.relabelling import carried_pictures, relabelled
from stream_odml.storage.files import Files
from stream_odml.storage.reading import StorageOptions
from stream_odml.store.labels import LABELS
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows, gallery_schema, quarantine_rows

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
    device: str | torch.device = "cpu"
    """Where images are embedded."""
    codes: FeatureFormat | None = None
    """How a root in exact form codes trunk features; None: embeddings are stored."""
    store: Store | None = None
    """Where a table of labels finds the items that it names; None: such a table is refused."""


@dataclass
class IndexedShard:
    """Outcome of one shard: gallery and quarantine rows (Arrow), and the trainable images of each class."""

    ref: ShardRef
    rows: pa.Table
    quarantine: pa.Table
    trainable: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Any] | None = None

    @property
    def counts(self) -> dict[str, Any]:
        """What the ledger is to remember of the shard, beside what the writer counts in the rows."""
        counts = {
            "trainable": dict(self.trainable),
            "reasons": dict(Counter(self.quarantine["reason"].to_pylist())),
        }
        return counts if self.labels is None else {**counts, LABELS: self.labels}


@dataclass
class _Findings:
    """What has been found in a shard so far, chunk by chunk, as Arrow tables: a tenth of the memory of Python objects.

    Bytes of an image are kept only where it is held out."""

    rows: list[pa.Table] = field(default_factory=list)
    images: list[pa.Table] = field(default_factory=list)
    thumbnails: list[pa.Table] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)
    trainable: Counter[str] = field(default_factory=Counter)
    labels: dict[str, Any] | None = None


def index_shard(
    ref: ShardRef,
    embedder: Embedder,
    version: str,
    files: Files,
    options: IndexOptions,
    beat: Callable[[], None] = lambda: None,
) -> IndexedShard:
    """Index one shard with ``embedder``, the model of ``version``; ``beat`` is called at every row. A shard that is
    refused as a whole gives no gallery row and one quarantine row, numbered WHOLE_SHARD. Raises TransientReadError when
    its bytes cannot be had now."""
    try:
        found = _read(ref, embedder, version, options, beat)
    except BadShard as error:
        found = _Findings(problems=[RowProblem(WHOLE_SHARD, error.reason, error.detail, error.first_bytes)])
    _keep_files(ref, found, files)
    return IndexedShard(
        ref,
        pa.concat_tables([gallery_schema(options.codes).empty_table(), *found.rows]),
        quarantine_rows(
            (ref.shard_id, one.row, str(one.reason), one.detail, one.first_bytes) for one in found.problems
        ),
        found.trainable,
        found.labels,
    )


def _read(
    ref: ShardRef, embedder: Embedder, version: str, options: IndexOptions, beat: Callable[[], None]
) -> _Findings:
    found = _Findings()
    contents: tuple[Content, ...] = ("vector",) if embedder.takes_vectors else ("image",)
    if options.store is not None and options.codes is not None:
        contents = (*contents, "label")
    entries = decode_shard(
        ref, embedder.spec.image_size, options.max_pixels, options.source_options, contents
    )
    usable = _usable(entries, found.problems, beat)
    while chunk := list(islice(usable, CHUNK)):
        # A shard has rows of one kind.
        images = [one for one in chunk if isinstance(one, Decoded)]
        others = [one for one in chunk if isinstance(one, RawItem)]
        if images:
            _add_images(found, ref, images, embedder, version, options)
        if vectors := [item for item in others if item.vector is not None]:
            _add_vectors(found, ref, vectors, embedder.out_dim, version, options)
        if (labels := [item for item in others if item.vector is None]) and options.store is not None:
            _add_labels(found, ref, labels, options.store, options.held_out)
        beat()
    return found


def _add_images(
    found: _Findings,
    ref: ShardRef,
    images: list[Decoded],
    embedder: Embedder,
    version: str,
    options: IndexOptions,
) -> None:
    items = [one.item for one in images]
    held = [is_held_out(item.item_id, options.held_out) for item in items]
    vectors = embed(embedder, np.stack([one.pixels for one in images]), options.device)
    _add_items(found, ref, items, held, vectors, version, options.codes)
    if kept := [item for item, out in zip(items, held, strict=True) if out]:
        found.images.append(_pictures(kept, [item.image for item in kept]))
    if options.thumbnails:
        found.thumbnails.append(_pictures(items, [encode_image(one.pixels) for one in images]))


def _add_vectors(
    found: _Findings, ref: ShardRef, items: list[RawItem], dim: int, version: str, options: IndexOptions
) -> None:
    fitting: list[RawItem] = []
    vectors: list[Vector] = []
    for item in items:
        assert item.vector is not None
        if len(item.vector) == dim:
            fitting.append(item)
            vectors.append(item.vector)
        else:
            detail = f"{len(item.vector)} values; this stream takes vectors of {dim} (model.input_dim)"
            found.problems.append(RowProblem(item.row, Reason.WRONG_DIMENSION, detail))
    if fitting:
        # Who has no class yet is searchable, and is neither learnt from nor measured on.
        held = [bool(i.class_name) and is_held_out(i.item_id, options.held_out) for i in fitting]
        _add_items(found, ref, fitting, held, np.stack(vectors), version, options.codes)


def _add_labels(
    found: _Findings, ref: ShardRef, labels: list[RawItem], store: Store, held_out: float
) -> None:
    done = relabelled(store, ref, labels, held_out)
    _add(found, done.rows)
    found.problems += done.problems
    found.thumbnails.append(carried_pictures(store.files, "thumbnails", done))
    found.images.append(carried_pictures(store.files, "holdout", done))
    before = found.labels or done.noted
    found.labels = {"at": before["at"], "of": sorted({*before["of"], *done.noted["of"]})}


def _add_items(
    found: _Findings,
    ref: ShardRef,
    items: list[RawItem],
    held_out: list[bool],
    vectors: NDArray[np.float32],
    version: str,
    codes: FeatureFormat | None,
) -> None:
    rows = gallery_rows(
        item_ids=[item.item_id for item in items],
        class_names=[item.class_name for item in items],
        shard_ids=ref.shard_id,
        rows=[item.row for item in items],
        vectors=vectors,
        version=version,
        held_out=held_out,
        attributes=[item.attributes for item in items],
        times=[item.time for item in items],
        codes=codes,
    )
    _add(found, rows)


def _add(found: _Findings, rows: pa.Table) -> None:
    found.rows.append(rows)
    for name, held_out in zip(rows["class_name"].to_pylist(), rows["held_out"].to_pylist(), strict=True):
        if name != UNLABELLED:
            found.trainable[name] += not held_out


def _pictures(items: list[RawItem], images: list[bytes]) -> pa.Table:
    return pa.table(
        {
            "item_id": [item.item_id for item in items],
            "class_name": [item.class_name for item in items],  # so that a class can be forgotten here too
            "image": pa.array(images, pa.binary()),
        }
    )


def _usable(
    entries: Iterable[Decoded | RawItem | RowProblem], problems: list[RowProblem], beat: Callable[[], None]
) -> Iterator[Decoded | RawItem]:
    for entry in entries:
        beat()
        if isinstance(entry, RowProblem):
            problems.append(entry)
        else:
            yield entry


def _keep_files(ref: ShardRef, found: _Findings, files: Files) -> None:
    for folder, parts in (("thumbnails", found.thumbnails), ("holdout", found.images)):
        path = f"{folder}/{ref.shard_id}.parquet"
        if any(map(len, parts)):
            files.write(path, _parquet(pa.concat_tables(parts)))
        elif parts and files.exists(path):
            files.delete(path)  # of labels that were read before, when their items were not erased yet


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
