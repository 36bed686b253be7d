"""What a `metadata` file says of the images beside it: the layout of Hugging Face's `imagefolder`.

`metadata.csv`, `.jsonl` or `.parquet` with a column `file_name`, relative to its own folder. Its columns
`class_name` or `label`, `item_id` and `time` are those of an image; every other one is an attribute, and what no
attribute can be (a whole document, a control character) is left out: it must not cost its image.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from stream_odml.ingest import fields
from stream_odml.ingest.arrow_rows import METADATA
from stream_odml.ingest.plain import NameTwice, decoded, json_once, shown
from stream_odml.ingest.rawrow import LABEL_FIELDS, NAMES
from stream_odml.ingest.reasons import RowError
from stream_odml.ingest.shard_file import HeldFile
from stream_odml.ingest.tables import table_rows
from stream_odml.storage.regular import is_safe_path, read_regular

METADATA_NAMES = frozenset({"metadata.csv", "metadata.jsonl", "metadata.parquet"})
MAX_METADATA_BYTES = 256 << 20

Described = Mapping[str, str]
"""Columns of one image, as `ManifestFile.values` keeps them: `attributes` is JSON."""


@dataclass
class Metadata:
    """What a file says: of each image by its path below the scanned folder in NFC, and what of it is not used."""

    images: dict[str, Described] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    repeated: list[str] = field(default_factory=list)
    """Images that a later row describes differently."""
    unusable: list[str] = field(default_factory=list)
    """What stands where a class is expected and is none."""

    def in_words(self, path: str, there: Set[str]) -> str:
        """Return one line: how many images the file at `path` describes of those that are there."""
        missing = len(self.images.keys() - there)
        count = len(self.images) - missing
        parts = [f"{path} describes {count} image{'s' * (count != 1)}"]
        if missing:
            parts.append(f"and {missing} that are not there")
        if self.repeated:
            first = f"of which the first counts ({shown(self.repeated[0])})"
            parts.append(f"{len(self.repeated)} of them by several rows, {first}")
        if self.unusable:
            example = f"(such as {self.unusable[0]})"
            parts.append(f"{len(self.unusable)} that are no class kept as attributes {example}")
        elif self.images and not any("class_name" in values for values in self.images.values()):
            parts.append(
                f"no class, as none of its columns is `class_name` or `label`: {', '.join(self.columns)[:200]}"
            )
        return ", ".join(parts)


def read_metadata(path: Path, folder: PurePosixPath) -> Metadata:
    """Return what is said of each image; `folder` is the file's own below the scanned one. Raises ValueError for a file
    of another layout, BadShard (which is one) for a table that is none or a bomb."""
    data = read_regular(path, MAX_METADATA_BYTES)
    found = Metadata()
    for row in _rows(data, path.suffix.lower()):
        found.columns = found.columns or tuple(map(str, row))
        name = row.pop("file_name", None)
        if not isinstance(name, str) or not name:
            raise ValueError(f"a row without `file_name`; found {sorted(map(str, row))[:20]}")
        name = name.replace("\\", "/")  # as Windows writes it
        if not is_safe_path(name):
            raise ValueError(f"file_name {name[:200]!r} leads out of its folder")
        image = normalize("NFC", (folder / name).as_posix())
        columns = _columns(row, found)
        if found.images.setdefault(image, columns) != columns:
            found.repeated.append(image)
    return found


def _rows(data: bytes, suffix: str) -> Iterator[dict[str, Any]]:
    try:
        if suffix == ".parquet":
            file = HeldFile(data, "metadata.parquet")
            yield from (dict(row.attributes) for row in table_rows(file, METADATA) if row.attributes)
        elif suffix == ".csv":
            yield from _csv_rows(decoded(data))
        else:
            for number, line in enumerate(decoded(data).split("\n"), 1):
                if line.strip():
                    yield _json_row(number, line)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {data[error.start]:#04x} at {error.start} is not UTF-8: save the file as UTF-8 (in a spreadsheet: "
            "`CSV UTF-8`), or convert it, `iconv -f LATIN1 -t UTF-8`"
        ) from error
    except csv.Error as error:
        raise ValueError(f"{type(error).__name__}: {str(error)[:200]}") from error


def _json_row(number: int, line: str) -> dict[str, Any]:
    try:
        row = json_once(line)
    except NameTwice as error:
        raise ValueError(f"line {number}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number} is no JSON, or has a number or a nesting beyond all use") from error
    if not isinstance(row, dict):
        raise ValueError(f"line {number} holds {type(row).__name__}, expected an object")
    return row


def _csv_rows(text: str) -> Iterator[dict[str, Any]]:
    """Yield rows by the names of their columns; with semicolons or tabs where there is no comma in the header."""
    header = text.partition("\n")[0]
    delimiter = next((one for one in ",;\t" if one in header), ",")
    # A caption may be a document: it is no attribute, and costs no image.
    csv.field_size_limit(MAX_METADATA_BYTES)
    lines = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
    names = [name.strip() for name in next(lines, [])]
    if len(set(names)) < len(names):
        raise ValueError(f"two columns of one name; found {names[:20]}")
    for line in filter(None, lines):
        if any(map(str.strip, line[len(names) :])):
            raise ValueError(
                f"line {lines.line_num} has {len(line)} values for {len(names)} columns, so one would be taken for "
                "another: put values with a comma in double quotes"
            )
        yield dict(zip(names, line, strict=False))


def _columns(row: dict[str, Any], found: Metadata) -> Described:
    """Return what columns say; one that is not what its name says becomes an attribute."""
    known: dict[str, str] = {}
    for target, names, check in (
        ("class_name", LABEL_FIELDS, fields.class_name),
        ("item_id", ("item_id",), fields.item_id),
        ("time", NAMES["time"], fields.when),
    ):
        name = next((name for name in names if row.get(name) not in (None, "")), None)
        try:
            checked = check(row[name]) if name is not None else None
        except RowError:
            if name is not None and target == "class_name":
                found.unusable.append(shown(row[name]))
            continue
        if checked is not None and name is not None:
            known[target] = str(checked)
            del row[name]
    attributes = _attributes(row)
    return known | ({"attributes": json.dumps(attributes)} if attributes else {})


def _attributes(row: dict[str, Any]) -> dict[str, str]:
    """Return the columns that fit into attributes."""
    nested = row.pop("attributes", None)
    if isinstance(nested, list):  # a map, as Arrow gives one
        with contextlib.suppress(RowError):
            nested = fields.attributes(nested)
    columns = nested if isinstance(nested, dict) else {"attributes": nested}
    fitting: dict[str, str] = {}
    for name, value in (columns | row).items():
        if value in (None, "") or not name:
            continue
        try:
            fitting = fields.attributes({**fitting, str(name): value})
        except RowError:
            continue
    return fitting
