"""Indexing of one shard: read, decode, embed with a given model, and say what could not be used. Vectors are taken as
they are, and labels are put on items that are stored.

Pure but for two derived files a shard, thumbnails and held-out images, which are written under the shard's own
name before the commit that makes its rows visible; a repetition writes the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
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
from stream_odml.store.pictures import as_parquet
from stream_odml.store.store import Store
from stream_odml.store.tables import IngestBatch, gallery_rows, gallery_schema, quarantine_rows, values

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
class _Findings:
    """What has been found in a shard so far, chunk by chunk, as Arrow tables: a tenth of the memory of Python objects.

    Bytes of an image are kept only where it is held out."""

    ref: ShardRef
    embedder: Embedder
    version: str
    options: IndexOptions
    rows: list[pa.Table] = field(default_factory=list)
    images: list[pa.Table] = field(default_factory=list)
    thumbnails: list[pa.Table] = field(default_factory=list)
    problems: list[RowProblem] = field(default_factory=list)
    trainable: Counter[str] = field(default_factory=Counter)
    """Good rows of each class that are not held out."""
    labels: dict[str, Any] | None = None

    def read(self, beat: Callable[[], None]) -> None:
        """Read the shard to its end. Raises BadShard, TransientReadError."""
        options = self.options
        contents: tuple[Content, ...] = ("vector",) if self.embedder.takes_vectors else ("image",)
        if options.store is not None and options.codes is not None:
            contents = (*contents, "label")
        size = self.embedder.spec.image_size
        entries = decode_shard(self.ref, size, options.max_pixels, options.source_options, contents)
        usable = self._usable(entries, beat)
        while chunk := list(islice(usable, CHUNK)):
            # A shard has rows of one kind.
            if images := [one for one in chunk if isinstance(one, Decoded)]:
                self._add_images(images)
            others = [one for one in chunk if isinstance(one, RawItem)]
            self._add_vectors([(item, item.vector) for item in others if item.vector is not None])
            if (labels := [item for item in others if item.vector is None]) and options.store is not None:
                self._add_labels(labels, options.store)
            beat()

    def _usable(
        self, entries: Iterable[Decoded | RawItem | RowProblem], beat: Callable[[], None]
    ) -> Iterator[Decoded | RawItem]:
        for entry in entries:
            beat()
            if isinstance(entry, RowProblem):
                self.problems.append(entry)
            else:
                yield entry

    def _add_images(self, images: list[Decoded]) -> None:
        items = [one.item for one in images]
        held = [is_held_out(item.item_id, self.options.held_out) for item in items]
        vectors = embed(self.embedder, np.stack([one.pixels for one in images]), self.options.device)
        self._add_items(items, held, vectors)
        if kept := [item for item, out in zip(items, held, strict=True) if out]:
            self.images.append(_pictures(kept, [item.image for item in kept]))
        if self.options.thumbnails:
            self.thumbnails.append(_pictures(items, [encode_image(one.pixels) for one in images]))

    def _add_vectors(self, found: list[tuple[RawItem, Vector]]) -> None:
        dim = self.embedder.out_dim
        for item, vector in found:
            if len(vector) != dim:
                detail = f"{len(vector)} values; this stream takes vectors of {dim} (model.input_dim)"
                self.problems.append(RowProblem(item.row, Reason.WRONG_DIMENSION, detail))
        if items := [item for item, vector in found if len(vector) == dim]:
            # Who has no class yet is searchable, and is neither learnt from nor measured on.
            held = [bool(i.class_name) and is_held_out(i.item_id, self.options.held_out) for i in items]
            self._add_items(items, held, np.stack([vector for _, vector in found if len(vector) == dim]))

    def _add_labels(self, labels: list[RawItem], store: Store) -> None:
        done = relabelled(store, self.ref, labels, self.options.held_out)
        self._add(done.rows)
        self.problems += done.problems
        self.thumbnails.append(carried_pictures(store.files, "thumbnails", done))
        self.images.append(carried_pictures(store.files, "holdout", done))
        before = self.labels or done.noted
        self.labels = {"at": before["at"], "of": sorted({*before["of"], *done.noted["of"]})}

    def _add_items(self, items: list[RawItem], held_out: list[bool], vectors: NDArray[np.float32]) -> None:
        rows = gallery_rows(
            item_ids=[item.item_id for item in items],
            class_names=[item.class_name for item in items],
            shard_ids=self.ref.shard_id,
            rows=[item.row for item in items],
            vectors=vectors,
            version=self.version,
            held_out=held_out,
            attributes=[item.attributes for item in items],
            times=[item.time for item in items],
            codes=self.options.codes,
        )
        self._add(rows)

    def _add(self, rows: pa.Table) -> None:
        self.rows.append(rows)
        for name, held_out in values(rows, "class_name", "held_out"):
            if name != UNLABELLED:
                self.trainable[name] += not held_out

    def keep_files(self, files: Files) -> None:
        """Write thumbnails and held-out images, one file of each."""
        for folder, parts in (("thumbnails", self.thumbnails), ("holdout", self.images)):
            path = f"{folder}/{self.ref.shard_id}.parquet"
            if any(map(len, parts)):
                files.write(path, as_parquet(pa.concat_tables(parts)))
            elif parts and files.exists(path):
                files.delete(path)  # of labels that were read before, when their items were not erased yet


def index_shard(
    ref: ShardRef,
    embedder: Embedder,
    version: str,
    files: Files,
    options: IndexOptions,
    beat: Callable[[], None] = lambda: None,
) -> IngestBatch:
    """Index one shard with `embedder`, the model of `version`; `beat` is called at every row. A shard that is
    refused as a whole gives no gallery row and one quarantine row, numbered WHOLE_SHARD. Raises TransientReadError when
    its bytes cannot be had now. Counted are `trainable` images by class, and `reasons` of quarantined rows."""
    found = _Findings(ref, embedder, version, options)
    try:
        found.read(beat)
    except BadShard as error:
        refusal = RowProblem(WHOLE_SHARD, error.reason, error.detail, error.first_bytes)
        found = _Findings(ref, embedder, version, options, problems=[refusal])
    found.keep_files(files)
    reasons = Counter(str(one.reason) for one in found.problems)
    counts = {"trainable": dict(found.trainable), "reasons": dict(reasons), "version": version}
    return IngestBatch(
        [ref.shard_id],
        pa.concat_tables([gallery_schema(options.codes).empty_table(), *found.rows]),
        quarantine_rows(
            (ref.shard_id, one.row, str(one.reason), one.detail, one.first_bytes) for one in found.problems
        ),
        {ref.shard_id: counts if found.labels is None else {**counts, LABELS: found.labels}},
    )


def _pictures(items: list[RawItem], images: list[bytes]) -> pa.Table:
    return pa.table(
        {
            "item_id": [item.item_id for item in items],
            "class_name": [item.class_name for item in items],  # so that a class can be forgotten here too
            "image": pa.array(images, pa.binary()),
        }
    )
