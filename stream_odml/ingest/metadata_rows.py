"""Rows of a `metadata.parquet` beside images, every column of each, as the decoder's process gives them.

Protects: it is decoded where its memory is bounded, as a table of images is: folders come from anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow.parquet as pq

from stream_odml.ingest.arrow_rows import class_names_of
from stream_odml.ingest.plain import as_json
from stream_odml.ingest.rawrow import NAMES, RawRow
from stream_odml.ingest.reasons import BadShard, Reason

METADATA = "metadata"
"""The format of such a file, for `tables.table_rows`."""


def metadata_rows(file: Any, *_: object) -> Iterator[RawRow]:
    """Yield each row, its columns as `attributes`. Raises BadShard for a table without `file_name`."""
    with pq.ParquetFile(file) as table:
        schema = table.schema_arrow
        if "file_name" not in schema.names:
            raise BadShard(Reason.WRONG_SCHEMA, f"no column file_name; found {schema.names[:20]}")
        named = {name: names for name in NAMES["label"] if (names := class_names_of(schema, name))}
        count = 0
        for batch in table.iter_batches(1024, use_threads=False):
            for row in batch.to_pylist():
                row |= {name: _named(row[name], names) for name, names in named.items() if name in row}
                yield RawRow(count, attributes={name: _value(value) for name, value in row.items()})
                count += 1


def _named(label: Any, names: Sequence[str]) -> Any:
    """The class of a number, as the writer of a table names it; a number that has no name stays one."""
    is_number = isinstance(label, int | float) and not isinstance(label, bool)
    return names[int(label)] if is_number and label in range(len(names)) else label


def _value(value: Any) -> Any:
    try:
        return as_json(value)
    except (ValueError, RecursionError):  # what no attribute can be costs no image
        return None
