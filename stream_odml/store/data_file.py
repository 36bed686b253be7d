"""Read one data file of a table in the table's own schema, whatever Delta writer wrote the file.

Protects: every filter sees our types. Delta's own DELETE, UPDATE and MERGE write `string_view` columns, other writers
`large_string`, dictionaries, 64-bit integers or partition values that are in the log instead of the file.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

SMALL_ROWS = 1 << 12
"""Up to so many rows a file of our own writing is read whole: in a third of the time that a scan takes to begin."""
Partition = Mapping[str, str | None]
"""Values of the columns that a partitioned table keeps in its log, as the log writes them."""


def read_data_file(
    filesystem: pafs.FileSystem,
    path: str,
    schema: pa.Schema,
    columns: Sequence[str] | None,
    where: pc.Expression | None,
    partition: Partition | None,
) -> pa.Table:
    """Return the rows of `path` that pass, columns in the types of `schema`; a column that it lacks is null. Row groups
    whose statistics rule them out are not read. Raises FileNotFoundError."""
    names = list(columns) if columns else schema.names
    wanted = pa.schema([schema.field(name) for name in names])
    is_plain = not partition and (where is None or len(names) == len(schema))
    if is_plain and (small := _read_small(filesystem, path, schema, names)) is not None:
        return (small if where is None else small.filter(where)).cast(wanted)
    import pyarrow.dataset as ds  # it loads pandas, and who reads small files needs neither

    known = _known_values(schema, partition or {})
    fragment = ds.ParquetFileFormat().make_fragment(path, filesystem, partition_expression=known)
    if where is not None:
        # Arrow compares no `string_view` with a row group's statistics; read as a dictionary it can.
        is_view = pa.types.is_string_view, pa.types.is_binary_view
        views = [
            field.name for field in fragment.physical_schema if any(test(field.type) for test in is_view)
        ]
        if views:
            options = ds.ParquetReadOptions(dictionary_columns=views)
            file_format = ds.ParquetFileFormat(read_options=options)
            fragment = file_format.make_fragment(path, filesystem, partition_expression=known)
    table = fragment.to_table(schema=schema, columns=names, filter=where, use_threads=False)
    return table.cast(wanted)


def as_dicts(rows: pa.Table) -> list[dict[str, Any]]:
    """Return rows of a table with a `time`, as `to_pylist` does. Raises OverflowError for one outside the calendar."""
    # For a time of a zone, Arrow loads pandas.
    naive = rows["time"].cast(pa.timestamp("us")).to_pylist()
    times = (None if time is None else time.replace(tzinfo=UTC) for time in naive)
    return [
        {**row, "time": time} for row, time in zip(rows.drop_columns("time").to_pylist(), times, strict=True)
    ]


def _read_small(
    filesystem: pafs.FileSystem, path: str, schema: pa.Schema, names: Sequence[str]
) -> pa.Table | None:
    """Return all rows of a small local file whose columns are the table's own; None for any other."""
    local = filesystem.base_fs if isinstance(filesystem, pafs.SubTreeFileSystem) else filesystem
    if not isinstance(local, pafs.LocalFileSystem):
        return None
    with filesystem.open_input_file(path) as source, pq.ParquetFile(source) as file:
        if file.metadata.num_rows > SMALL_ROWS or not file.schema_arrow.equals(schema):
            return None
        return file.read(list(names), use_threads=False)


def _known_values(schema: pa.Schema, partition: Partition) -> pc.Expression | None:
    known = None
    for name, text in partition.items():
        kind = schema.field(name).type
        value = pa.scalar(text or None, pa.string()).cast(kind)
        equal = pc.field(name) == value if value.is_valid else pc.field(name).is_null()
        known = equal if known is None else known & equal
    return known
