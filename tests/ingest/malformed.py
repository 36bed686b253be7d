"""Malformed rows and files from a seed, each with the reason for which it must be refused.

Used with a small dose by the tests and in full by the benchmark of ingestion.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.ingest.reasons import Reason
from stream_odml.ingest.shard import MANIFEST_NAME
from tests.ingest.pictures import FORMATS, bombs, picture

Random = np.random.Generator
COLUMNS = ("image", "class_name", "id", "attributes", "time")


@dataclass(frozen=True)
class Row:
    """A row as a producer wrote it, and why it must be refused (None: it is good)."""

    fields: dict[str, Any]
    reason: Reason | None


@dataclass(frozen=True)
class BadFile:
    """A file (or the files of a folder), the reason to refuse it, and what replaces its bytes after it was seen."""

    name: str
    data: bytes | dict[str, bytes]
    reason: Reason
    later: bytes | None = None


def good_fields(random: Random, number: int) -> dict[str, Any]:
    """The fields of a good row."""
    image = picture(number, FORMATS[number % len(FORMATS)])
    attributes = json.dumps({"lot": number, "colour": "red"})
    time = f"2024-02-{number % 28 + 1:02d}T12:00:00+00:00"
    return dict(
        zip(COLUMNS, (image, f"class {random.integers(9)}", f"id-{number}", attributes, time), strict=True)
    )


def malformed_rows(seed: int, count: int, good_share: float = 0.5) -> list[Row]:
    """`count` bad rows of all kinds in turn, with good ones strewn in between."""
    random = np.random.default_rng(seed)
    rows: list[Row] = []
    kinds = list(_ROW_KINDS)
    bad = 0
    while bad < count:
        fields = good_fields(random, len(rows))
        if not rows or random.random() < good_share:
            rows.append(Row(fields, None))
            continue
        column, reason, spoil = kinds[bad % len(kinds)]
        fields[column] = spoil(random, fields[column])
        rows.append(Row(fields, reason))
        bad += 1
    return rows


def table_of(rows: list[Row]) -> pa.Table:
    """The rows as a Parquet shard would hold them."""
    kinds = (pa.binary(), *[pa.string()] * 4)
    columns = {
        name: pa.array([row.fields[name] for row in rows], kind)
        for name, kind in zip(COLUMNS, kinds, strict=True)
    }
    return pa.table(columns)


def _cut(random: Random, image: bytes) -> bytes:
    whole = picture(int(random.integers(1 << 30)), FORMATS[random.integers(len(FORMATS))], (40, 40))
    return whole[: int(random.integers(len(whole) // 2, len(whole) * 3 // 4))]


def _bomb(random: Random, image: bytes) -> bytes:
    return list(bombs().values())[random.integers(5)]


def _noise(random: Random, image: bytes) -> bytes:
    return b"\0" + random.bytes(int(random.integers(1, 300)))


_ROW_KINDS: tuple[tuple[str, Reason, Callable[[Random, Any], Any]], ...] = (
    ("image", Reason.TRUNCATED_IMAGE, _cut),
    ("image", Reason.EMPTY_IMAGE, lambda r, v: b""),
    ("image", Reason.MISSING_IMAGE, lambda r, v: None),
    ("image", Reason.NOT_AN_IMAGE, _noise),
    ("image", Reason.NOT_AN_IMAGE, lambda r, v: b"%PDF-1.7 and so on"),
    ("image", Reason.IMAGE_BOMB, _bomb),
    ("class_name", Reason.MISSING_LABEL, lambda r, v: None),
    ("class_name", Reason.MISSING_LABEL, lambda r, v: " \t "),
    ("class_name", Reason.BAD_LABEL, lambda r, v: "x" * int(r.integers(257, 20_000))),
    ("class_name", Reason.BAD_LABEL, lambda r, v: "a\x00b"),
    ("class_name", Reason.BAD_LABEL, lambda r, v: "two\nlines"),
    ("id", Reason.DUPLICATE_ID, lambda r, v: "id-0"),
    ("id", Reason.BAD_ID, lambda r, v: "\x1b[2J"),
    ("id", Reason.BAD_ID, lambda r, v: " "),
    ("attributes", Reason.BAD_ATTRIBUTES, lambda r, v: '{"a": 1} {"b": 2}'),
    ("attributes", Reason.BAD_ATTRIBUTES, lambda r, v: '{"weight": '),
    ("attributes", Reason.BAD_ATTRIBUTES, lambda r, v: "[1, 2]"),
    ("attributes", Reason.BAD_ATTRIBUTES, lambda r, v: "[" * 100_000),
    ("time", Reason.BAD_TIME, lambda r, v: "NaN"),
    ("time", Reason.BAD_TIME, lambda r, v: "2024-13-45"),
)


def malformed_files(seed: int, count: int) -> Iterator[BadFile]:
    """`count` bad files of all kinds in turn."""
    random = np.random.default_rng(seed)
    for number in range(count):
        yield _FILE_KINDS[number % len(_FILE_KINDS)](random, number)


def pour(folder: Path, files: list[BadFile]) -> None:
    """Write the files as a careless producer would."""
    for file in files:
        parts = {"": file.data} if isinstance(file.data, bytes) else file.data
        for path, data in parts.items():
            target = folder / file.name / path if path else folder / file.name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)


def _parquet(random: Random, drop: str = "", **change: pa.Array) -> bytes:
    rows = [Row(good_fields(random, number), None) for number in range(5)]
    table = table_of(rows)
    for name, array in change.items():
        table = table.set_column(table.schema.get_field_index(name), name, array)
    out = io.BytesIO()
    pq.write_table(table.drop_columns([drop]) if drop else table, out)
    return out.getvalue()


def _arrow(random: Random) -> bytes:
    table, out = table_of([Row(good_fields(random, number), None) for number in range(5)]), io.BytesIO()
    with pa.ipc.new_file(out, table.schema) as writer:
        writer.write_table(table)
    return out.getvalue()


def _tar(random: Random) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for number in range(5):
            for name, data in ((f"{number}.png", picture(number)), (f"{number}.cls", b"cat")):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def _half(random: Random, data: bytes, least: int = 600) -> bytes:
    return data[: int(random.integers(least, len(data) - 20))]


def _half_written(random: Random) -> bytes:
    """What a Parquet writer has on disk before it closes the file."""
    table, out = table_of([Row(good_fields(random, number), None) for number in range(5)]), io.BytesIO()
    writer = pq.ParquetWriter(out, table.schema)
    writer.write_table(table)
    data = out.getvalue()
    writer.close()
    return data


def _bad_footer(data: bytes) -> bytes:
    return data[:-108] + b"\xff" * 100 + data[-8:]


def _manifest(path: str) -> bytes:
    return json.dumps({"format": 1, "files": [{"path": path, "size_bytes": 3}]}).encode()


_FILE_KINDS: tuple[Callable[[Random, int], BadFile], ...] = (
    lambda r, n: BadFile(f"{n}.parquet", b"", Reason.EMPTY_FILE),
    lambda r, n: BadFile(f"{n}.arrow", b"", Reason.EMPTY_FILE),
    lambda r, n: BadFile(f"{n}.tar", b"", Reason.EMPTY_FILE),
    lambda r, n: BadFile(f"{n}.parquet", b"\0" + r.bytes(500), Reason.CORRUPT_FILE),
    lambda r, n: BadFile(f"{n}.arrow", b"\0" + r.bytes(500), Reason.CORRUPT_FILE),
    lambda r, n: BadFile(f"{n}.tar", b"\0" + r.bytes(500), Reason.CORRUPT_FILE),
    lambda r, n: BadFile(f"{n}.parquet", _half(r, _parquet(r)), Reason.TRUNCATED_FILE),
    lambda r, n: BadFile(f"{n}.arrow", _half(r, _arrow(r)), Reason.TRUNCATED_FILE),
    lambda r, n: BadFile(f"{n}.tar", _half(r, _tar(r).rstrip(b"\0")), Reason.TRUNCATED_FILE),
    lambda r, n: BadFile(f"{n}.tar", _tar(r)[: 4 * 512], Reason.TRUNCATED_FILE),
    lambda r, n: BadFile(f"{n}.parquet", _half_written(r), Reason.TRUNCATED_FILE),
    lambda r, n: BadFile(f"{n}.parquet", _bad_footer(_parquet(r)), Reason.CORRUPT_FILE),
    lambda r, n: BadFile(f"{n}.parquet", _parquet(r, drop="image"), Reason.WRONG_SCHEMA),
    lambda r, n: BadFile(f"{n}.parquet", _parquet(r, drop="class_name"), Reason.WRONG_SCHEMA),
    lambda r, n: BadFile(f"{n}.parquet", _parquet(r, image=pa.array(range(5))), Reason.WRONG_SCHEMA),
    lambda r, n: BadFile(f"{n}.csv", b"image,label\n", Reason.UNKNOWN_FORMAT),
    lambda r, n: BadFile(f"{n}", {MANIFEST_NAME: b'{"format": 1, "files": ['}, Reason.BAD_MANIFEST),
    lambda r, n: BadFile(f"{n}", {MANIFEST_NAME: _manifest("../../etc/passwd")}, Reason.UNSAFE_PATH),
    lambda r, n: BadFile(f"{n}.task.json", b"[]", Reason.BAD_MANIFEST),
    lambda r, n: BadFile(f"{n}.parquet", _parquet(r), Reason.CHANGED_WHILE_READ, _parquet(r)[:-9]),
    lambda r, n: BadFile(f"{n}.tar", _tar(r), Reason.CHANGED_WHILE_READ, _tar(r).replace(b"cat", b"dog")),
)
