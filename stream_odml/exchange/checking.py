"""A block of a source as gallery rows, and why the others of its rows cannot be used.

Protects: what leaves this file is what a reader of a shard would have taken: the same names, the same limits.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.exchange.source import ATTRIBUTES, CLASS, CLASS_NAMES, ID, ROW, VECTOR, vectors_of
from stream_odml.ingest import fields
from stream_odml.ingest.arrow_values import attribute_converter, id_value, label_value
from stream_odml.ingest.reading import UNLABELLED
from stream_odml.ingest.reasons import Reason, RowError
from stream_odml.ingest.vectors import problems_of
from stream_odml.learn.feature_codes import FeatureFormat
from stream_odml.pipeline.holdout import is_held_out
from stream_odml.store.tables import IngestBatch, gallery_rows, gallery_schema, quarantine_rows

CODED_ROWS = 4096
"""Vectors coded at once: coding takes several times their memory."""
_PLAIN_ID = r"^[!-~]{1,256}$"
Floats = NDArray[np.float32]


@dataclass
class Findings:
    """What was found in the blocks so far."""

    rows: int = 0
    unlabelled: int = 0
    classes: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    norms: list[Floats] = field(default_factory=list)
    hashes: list[NDArray[np.uint64]] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)
    """Of all rows so far: one that comes again is quarantined. Not of rows of another root, which has each once, and
    where one that comes later took the place of an earlier one."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """How a root stores what it takes over."""

    dim: int
    version: str
    codes: FeatureFormat | None
    held_out: float


def check(table: pa.Table, shard_id: str, target: Target, found: Findings) -> IngestBatch:
    """Return a block as it is committed, its rows and what is quarantined of them; `found` takes it all in."""
    vectors, fits = vectors_of(table[VECTOR], target.dim)
    unfit = Reason.WRONG_DIMENSION, f"a vector of another length than {target.dim}, or none"
    problems: dict[int, tuple[Reason, str]] = dict.fromkeys(map(int, np.flatnonzero(~fits)), unfit)
    for row, why in problems_of(vectors):
        problems.setdefault(row, (Reason.BAD_VECTOR, why))
    ids = _ids(table, shard_id, problems, set() if ROW in table.column_names else found.ids)
    classes = _classes(table, problems)
    attributes = _attributes(table, problems)
    keep = np.ones(len(table), bool)
    keep[list(problems)] = False
    rows = np.flatnonzero(keep)
    numbers = table[ROW].to_numpy() if ROW in table.column_names else np.arange(len(table))
    held = [bool(classes[row]) and is_held_out(ids[row], target.held_out) for row in rows]
    parts = []
    for at in range(0, len(rows), CODED_ROWS):
        some = rows[at : at + CODED_ROWS]
        parts.append(
            gallery_rows(
                item_ids=[ids[row] for row in some],
                class_names=[classes[row] for row in some],
                shard_ids=shard_id,
                rows=numbers[some],
                vectors=vectors[some],
                version=target.version,
                held_out=held[at : at + CODED_ROWS],
                attributes=None if attributes is None else [attributes[row] for row in some],
                codes=target.codes,
            )
        )
    trainable = Counter(classes[row] for row, out in zip(rows, held, strict=True) if classes[row] and not out)
    _take_in(found, vectors[keep] if len(rows) < len(table) else vectors, [classes[row] for row in rows])
    reasons = Counter(str(reason) for reason, _ in problems.values())
    found.reasons.update(reasons)
    refused = ((shard_id, row, str(reason), why, b"") for row, (reason, why) in sorted(problems.items()))
    stored = pa.concat_tables([gallery_schema(target.codes).empty_table(), *parts])
    counts = {"trainable": dict(trainable), "reasons": dict(reasons), "version": target.version}
    return IngestBatch([shard_id], stored, quarantine_rows(refused), {shard_id: counts})


def _ids(
    table: pa.Table, shard_id: str, problems: dict[int, tuple[Reason, str]], seen: set[str]
) -> list[str]:
    given: list[Any] = [None] * len(table)
    if ID in table.column_names:
        given = _clean_ids(table[ID], problems)
    ids = [f"{shard_id}/{row}" if one is None else one for row, one in enumerate(given)]
    for row, one in enumerate(ids):
        if row in problems:
            continue
        if one in seen:
            problems[row] = (Reason.DUPLICATE_ID, f"id {one:.200} came before in this source")
        seen.add(one)
    return ids


def _clean_ids(column: pa.ChunkedArray, problems: dict[int, tuple[Reason, str]]) -> list[Any]:
    kind = column.type
    if pa.types.is_integer(kind) and not column.null_count and (pc.min(column).as_py() or 0) >= 0:
        numbers: list[Any] = column.cast(pa.string()).to_pylist()
        return numbers
    if pa.types.is_string(kind) and pc.all(pc.match_substring_regex(column, _PLAIN_ID)).as_py():
        plain = column.to_pylist()
        if not any(one in (".", "..") for one in plain):
            return list(plain)
    found: list[Any] = []
    for row, scalar in enumerate(column):
        try:
            found.append(fields.item_id(id_value(scalar)))
        except RowError as error:
            problems.setdefault(row, (error.reason, error.detail))
            found.append(None)
    return found


def _classes(table: pa.Table, problems: dict[int, tuple[Reason, str]]) -> list[str]:
    """Return the class of each row; empty where nobody says it."""
    if CLASS not in table.column_names:
        return [UNLABELLED] * len(table)
    values, codes = _encoded(table[CLASS].combine_chunks())
    noted = (table.schema.field(CLASS).metadata or {}).get(CLASS_NAMES)
    known = None if noted is None else json.loads(noted)
    names: list[str | RowError] = [_class(scalar, known) for scalar in values]
    found = []
    for row, code in enumerate(codes):
        name = UNLABELLED if code is None else names[code]
        if isinstance(name, RowError):
            problems.setdefault(row, (name.reason, name.detail))
            name = UNLABELLED
        found.append(name)
    return found


def _encoded(column: pa.Array) -> tuple[Iterable[Any], Sequence[int | None]]:
    """Return different values of a column, and for each row which of them it has."""
    try:
        encoded = column if pa.types.is_dictionary(column.type) else column.dictionary_encode()
    except pa.ArrowNotImplementedError:  # of types that Arrow does not compare: in runs, say
        return column, range(len(column))
    return encoded.dictionary, encoded.indices.to_pylist()


def _class(scalar: Any, known: Sequence[str] | None) -> str | RowError:
    try:
        return fields.class_name(label_value(scalar), known)
    except RowError as error:
        return UNLABELLED if error.reason is Reason.MISSING_LABEL else error


def _attributes(table: pa.Table, problems: dict[int, tuple[Reason, str]]) -> list[dict[str, str]] | None:
    if ATTRIBUTES not in table.column_names:
        return None
    column = table[ATTRIBUTES]
    convert = attribute_converter(ATTRIBUTES, column.type)
    values: Iterable[Any] = column
    if _is_plain(column.type):  # several times as fast
        values, convert = column.to_pylist(), lambda value: value
    found = []
    for row, value in enumerate(values):
        try:
            found.append(fields.attributes(convert(value)))
        except RowError as error:
            problems.setdefault(row, (error.reason, error.detail))
            found.append({})
    return found


def _is_plain(kind: pa.DataType) -> bool:
    """Return whether Arrow's own Python values are as `plain.py` writes them: of text, numbers and nothing else."""
    if pa.types.is_struct(kind):
        return all(map(_is_plain, (kind.field(at).type for at in range(kind.num_fields))))
    if pa.types.is_map(kind):
        return _is_plain(kind.key_type) and _is_plain(kind.item_type)
    is_of = pa.types
    tests = (is_of.is_string, is_of.is_integer, is_of.is_boolean, is_of.is_float64, is_of.is_null)
    return any(test(kind) for test in tests)


def _take_in(found: Findings, vectors: Floats, classes: Sequence[str]) -> None:
    found.rows += len(vectors)
    counts = Counter(classes)
    found.unlabelled += counts.pop(UNLABELLED, 0)
    found.classes.update(counts)
    found.norms.append(np.sqrt(np.einsum("nd,nd->n", vectors, vectors)))
    found.hashes.append(row_hashes(vectors))


def row_hashes(vectors_nd: Floats) -> NDArray[np.uint64]:
    """Return a number for each row that equal rows share, and that others share with a chance of 2^-64."""
    words = np.ascontiguousarray(vectors_nd, np.float32).view(np.uint32)
    odd = np.random.default_rng(0).integers(0, 2**63, words.shape[1], np.uint64) * np.uint64(2) + np.uint64(1)
    hashes = np.zeros(len(words), np.uint64)
    for at in range(0, len(words), CODED_ROWS):
        part = words[at : at + CODED_ROWS].astype(np.uint64)
        hashes[at : at + CODED_ROWS] = ((part + np.uint64(0x9E3779B9)) * odd).sum(axis=1, dtype=np.uint64)
    return hashes
