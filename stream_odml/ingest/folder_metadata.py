"""What a `metadata` file says of the images beside it: the layout of Hugging Face's `imagefolder`.

`metadata.csv`, `.jsonl` or `.parquet` with a column `file_name`, relative to its own folder. Its columns
`class_name` or `label`, `item_id` and `time` are those of an image; every other one is an attribute, and what no
attribute can be (a whole document, a control character) is left out: it must not cost its image.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

import pyarrow as pa
import pyarrow.parquet as pq

from stream_odml.ingest import fields
from stream_odml.ingest.plain import json_once
from stream_odml.ingest.reasons import RowError
from stream_odml.storage.regular import is_safe_path, read_regular

METADATA_NAMES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
MAX_METADATA_BYTES = 256 << 20

Described = Mapping[str, str]
"""Columns of one image, as `ManifestFile.values` keeps them: `attributes` is JSON."""

_LABELS = ("class_name", "label", "labels")
_TIMES = ("time", "timestamp")


def read_metadata(path: Path, folder: PurePosixPath) -> dict[str, Described]:
    """Return what is said of each image, by its path below the scanned folder in NFC; `folder` is the
    file's own there.

    Raises ValueError for a file of another layout.
    """
    data = read_regular(path, MAX_METADATA_BYTES)
    described: dict[str, Described] = {}
    for row in _rows(data, path.suffix.lower()):
        name = row.pop("file_name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"a row without `file_name`; found {sorted(map(str, row))[:20]}")
        name = name.replace("\\", "/")  # as Windows writes it
        if not is_safe_path(name):
            raise ValueError(f"file_name {name[:200]!r} leads out of its folder")
        described.setdefault(normalize("NFC", (folder / name).as_posix()), _columns(row))
    return described


def _rows(data: bytes, suffix: str) -> Iterator[dict[str, Any]]:
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(data)
        elif suffix == ".csv":
            yield from _csv_rows(data.decode("utf-8-sig"))
        else:
            for line in filter(str.strip, data.decode("utf-8-sig").split("\n")):
                row = json_once(line)
                if not isinstance(row, dict):
                    raise ValueError(f"a line holds {type(row).__name__}, expected an object")
                yield row
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {data[error.start]:#04x} at {error.start} is not UTF-8: save the file as UTF-8 (in a spreadsheet: "
            "`CSV UTF-8`), or convert it, `iconv -f LATIN1 -t UTF-8`"
        ) from error
    except (pa.ArrowException, csv.Error, RecursionError) as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    """Rows by the names of their columns; with semicolons or tabs where there is no comma in the header."""
    header = text.partition("\n")[0]
    delimiter = next((one for one in ",;\t" if one in header), ",")
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    names = [name.strip() for name in next(lines, [])]
    if len(set(names)) < len(names):
        raise ValueError(f"two columns of one name; found {names[:20]}")
    yield from (dict(zip(names, line, strict=False)) for line in lines if line)


def _parquet_rows(data: bytes) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(pa.BufferReader(data)) as table:
        if "file_name" not in table.schema_arrow.names:
            raise ValueError(f"no column file_name; found {table.schema_arrow.names[:20]}")
        for batch in table.iter_batches(1024, use_threads=False):
            yield from batch.to_pylist()


def _columns(row: dict[str, Any]) -> Described:
    """A column that is not what its name says becomes an attribute."""
    known: dict[str, str] = {}
    for target, names, check in (
        ("class_name", _LABELS, fields.class_name),
        ("item_id", ("item_id",), fields.item_id),
        ("time", _TIMES, fields.when),
    ):
        name = next((name for name in names if row.get(name) not in (None, "")), None)
        try:
            checked = check(row[name]) if name is not None else None
        except RowError:
            continue
        if checked is not None and name is not None:
            known[target] = str(checked)
            del row[name]
    attributes = _attributes(row)
    return known | ({"attributes": json.dumps(attributes)} if attributes else {})


def _attributes(row: dict[str, Any]) -> dict[str, str]:
    """As many columns as make attributes."""
    nested = row.pop("attributes", None)
    columns = {"attributes": nested} if isinstance(nested, str) else {}
    columns |= nested if isinstance(nested, dict) else {}
    fitting: dict[str, str] = {}
    for name, value in (columns | row).items():
        if value in (None, "") or not name:
            continue
        try:
            fitting = fields.attributes({**fitting, str(name): value})
        except RowError:
            continue
    return fitting
