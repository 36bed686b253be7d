"""The four tables of a stream root: columns, schema version, form, and how rows are built and checked.

A root has one form, fixed when it is created. `embedding`: the gallery stores embeddings, column `vector`. `exact`: it
stores trunk features, coded (columns `codes` and `scale`), from which any head's embeddings are made anew.

Protects: a table never holds a vector without its version, nor a vector that is not finite or of another dimension.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from stream_odml.learn.feature_codes import FeatureCodes, FeatureFormat, encode
from stream_odml.store.code_column import code_column, codes_of

SCHEMA_VERSION = 2
"""Raised by one whenever a table changes in a way that an older release would misread."""
Form = Literal["embedding", "exact"]
FORMS: tuple[Form, ...] = ("embedding", "exact")
SINCE: dict[Form, int] = {"embedding": 1, "exact": 2}
"""The schema version that each form is written with: the oldest release that reads it."""
VECTOR_COLUMNS = ("vector", "codes", "scale")
"""Columns of the gallery in which vectors are, in one form or the other."""

TIME = pa.timestamp("us", tz="UTC")
VECTOR = pa.list_(pa.field("element", pa.float32(), nullable=False))


def _texts(*names: str) -> list[tuple[str, pa.DataType]]:
    return [(name, pa.string()) for name in names]


_COMMITTED = [("time", TIME), ("epoch", pa.int64())]
LEDGER = pa.schema([("seq", pa.int64()), *_texts("kind", "subject", "task", "txn", "detail"), *_COMMITTED])
VERSIONS = pa.schema(
    [
        ("seq", pa.int64()),
        *_texts("kind", "version_id", "parent", "task", "artifacts", "metrics", "reason"),
        *_COMMITTED,
    ]
)


def gallery_schema(codes: FeatureFormat | None = None) -> pa.Schema:
    """Return the gallery's columns: of a root in exact form with such codes, or (None) in embedding form."""
    vector = [("vector", VECTOR)] if codes is None else [("codes", pa.binary()), ("scale", pa.float32())]
    return pa.schema(
        [
            *_texts("item_id", "class_name", "shard_id"),
            ("row", pa.int32()),
            ("held_out", pa.bool_()),
            ("attributes", pa.string()),
            ("time", TIME),
            *vector,
            *_texts("version", "txn"),
        ]
    )


GALLERY = gallery_schema()
"""In embedding form."""
QUARANTINE = pa.schema(
    [
        ("shard_id", pa.string()),
        ("row", pa.int32()),
        *_texts("reason", "detail"),
        ("first_bytes", pa.binary()),
        ("time", TIME),
        ("txn", pa.string()),
    ]
)
SCHEMAS = {"ledger": LEDGER, "versions": VERSIONS, "gallery": GALLERY, "quarantine": QUARANTINE}

FloatArray = NDArray[np.float32]


@dataclass(frozen=True)
class IngestBatch:
    """One or more whole shards, indexed. Rows of a forgotten class or of a shard already indexed are left out."""

    shard_ids: Sequence[str]
    rows: pa.Table
    """From `gallery_rows`."""
    quarantine: pa.Table = field(default_factory=QUARANTINE.empty_table)
    """From `quarantine_rows`."""
    counts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """More to remember of each shard (by id), as JSON; rows, held_out, quarantined, classes are counted here."""

    @staticmethod
    def joined(batches: Sequence["IngestBatch"]) -> "IngestBatch":
        """Return several as one transaction."""
        return IngestBatch(
            [shard_id for batch in batches for shard_id in batch.shard_ids],
            pa.concat_tables([batch.rows for batch in batches]),
            pa.concat_tables([batch.quarantine for batch in batches]),
            {shard_id: counts for batch in batches for shard_id, counts in batch.counts.items()},
        )


def gallery_rows(
    *,
    item_ids: Sequence[str],
    class_names: Sequence[str],
    shard_ids: Sequence[str] | str,
    rows: Sequence[int] | NDArray[np.integer[Any]],
    vectors: FloatArray,
    version: str,
    held_out: Sequence[bool] | NDArray[np.bool_] | bool = False,
    attributes: Sequence[dict[str, str] | str | None] | None = None,
    times: Sequence[datetime | None] | None = None,
    codes: FeatureFormat | None = None,
) -> pa.Table:
    """Return gallery rows for a commit; `vectors` float32 [n, d] RAW (not normalised) under model `version`.

    `codes`: of a root in exact form (`Store.row_codes`), whose vectors are trunk features. The writer fills in
    `txn`. Raises ValueError for lengths that differ, a vector that is not finite, or no version.
    """
    n = len(item_ids)
    columns = {
        "item_id": item_ids,
        "class_name": class_names,
        "shard_id": [shard_ids] * n if isinstance(shard_ids, str) else shard_ids,
        "row": np.asarray(rows, dtype=np.int32),
        "held_out": [held_out] * n if isinstance(held_out, bool) else held_out,
        "attributes": [_as_json(a) for a in attributes] if attributes else ["{}"] * n,
        "time": times if times is not None else [None] * n,
    }
    items = pa.table(columns, schema=pa.schema([GALLERY.field(name) for name in columns]))
    return restamped(items, vectors, version, codes)


def restamped(rows: pa.Table, vectors: FloatArray, version: str, codes: FeatureFormat | None) -> pa.Table:
    """Return gallery rows of the same items (`rows`: columns but the vector's, version, txn) under another model.
    `vectors` and `codes` as for `gallery_rows`, and the same errors."""
    if vectors.ndim != 2 or len(vectors) != len(rows):
        shape, n = vectors.shape, len(rows)
        raise ValueError(f"vectors have shape {shape} for {n} items; give one row [d] for each item")
    if not version:
        raise ValueError("the vectors name no model version; say which version made them")
    _check_finite(vectors)
    columns = {
        **_vector_columns(vectors, codes),
        "version": pa.repeat(pa.scalar(version, pa.string()), len(rows)),
        "txn": pa.repeat(pa.scalar("", pa.string()), len(rows)),
    }
    schema = gallery_schema(codes)
    made = {f.name: columns[f.name] if f.name in columns else rows[f.name].cast(f.type) for f in schema}
    return pa.table(made, schema=schema)


def _vector_columns(vectors: FloatArray, codes: FeatureFormat | None) -> dict[str, pa.Array]:
    if codes is None:
        return {"vector": vector_column(vectors)}
    coded = encode(vectors, codes)
    return {"codes": code_column(coded.codes_nD), "scale": pa.array(coded.scale_n, pa.float32())}


def features_of(rows: pa.Table, dim: int) -> FeatureCodes:
    """Return the trunk features of rows of a root in exact form, as stored. Raises ValueError when a row has
    another dimension, or none."""
    scales = rows["scale"]
    if scales.null_count:
        raise ValueError(
            f"{scales.null_count} stored features have no scale; restore the gallery from a backup"
        )
    return FeatureCodes(codes_of(rows["codes"], dim), scales.to_numpy().astype(np.float32, copy=False))


def decoded(rows: pa.Table, dim: int) -> FloatArray:
    """Return the vectors float32 [n, dim] of rows in either form: embeddings, or trunk features. Errors as above."""
    return (
        features_of(rows, dim).decode() if "codes" in rows.column_names else vectors_of(rows["vector"], dim)
    )


def _check_finite(vectors: FloatArray) -> None:
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise ValueError(
            f"{int((~finite).sum())} of {len(vectors)} vectors are not finite (first: row {int(finite.argmin())}); "
            "quarantine those rows or refuse the model that made them"
        )


def quarantine_rows(rows: Iterable[tuple[str, int, str, str, bytes]]) -> pa.Table:
    """Return quarantine rows of (shard, row there, reason, detail, first bytes): why each of them cannot be used. The
    writer fills in `time` and `txn`."""
    names = QUARANTINE.names[:5]
    return pa.Table.from_pylist(
        [{**dict(zip(names, row, strict=True)), "txn": ""} for row in rows], schema=QUARANTINE
    )


def stamped(quarantine: pa.Table, txn: str) -> pa.Table:
    """Return quarantine rows with their transaction and the time of their commit."""
    return with_column(with_column(quarantine, "txn", txn), "time", datetime.now(UTC))


def vector_column(vectors: FloatArray) -> pa.Array:
    """Return float32 [n, d] as an Arrow list column, without a Python loop."""
    n, d = vectors.shape
    flat = pa.array(np.ascontiguousarray(vectors, dtype=np.float32).reshape(-1))
    offsets = pa.array(np.arange(n + 1, dtype=np.int32) * d)
    return pa.ListArray.from_arrays(offsets, flat, type=VECTOR)


def vectors_of(column: pa.ChunkedArray, dim: int) -> FloatArray:
    """Return the inverse of `vector_column`: float32 [n, dim]. Raises ValueError when a row
    has another dimension."""
    parts = []
    for chunk in column.chunks:
        flat = chunk.flatten().to_numpy(zero_copy_only=False)
        if flat.size != len(chunk) * dim:
            raise ValueError(f"stored vectors do not have dimension {dim}; the table does not fit this store")
        parts.append(flat.reshape(len(chunk), dim))
    if not parts:
        return np.empty((0, dim), dtype=np.float32)
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def values(rows: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    """Yield the values of these columns, row by row."""
    return zip(*(rows[name].to_pylist() for name in names), strict=True)


def with_column(table: pa.Table, name: str, value: Any) -> pa.Table:
    """Return the table with one column set to one value everywhere."""
    at, kind = table.schema.get_field_index(name), table.schema.field(name)
    return table.set_column(at, kind, pa.repeat(pa.scalar(value, kind.type), len(table)))


def _as_json(attributes: dict[str, str] | str | None) -> str:
    if isinstance(attributes, str):
        return attributes
    return json.dumps(attributes or {}, sort_keys=True)
