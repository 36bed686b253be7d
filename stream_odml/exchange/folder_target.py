"""A folder as a target: a Parquet file for each bucket, in a folder of each space, and a file that says which is read.

Protects: every file is written aside and renamed; `current.json` is the one thing that readers ask. A file that was
damaged since differs from every bucket, so that it is written again.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.target import BUCKETS, ROWS, Digests, Mark, Now, is_space, summed
from stream_odml.exchange.urls import check_outside
from stream_odml.storage.atomic import drop_strays, write_whole

CURRENT = "current.json"
_COLUMNS = [*ROWS.names, "vector"]
_DAMAGED = (-1, 0)
"""In place of the rows and digest of a bucket whose file is none that sync wrote: no bucket has these."""


class FolderTarget:
    """A `SyncTarget`: `FOLDER/current.json` names the space, `FOLDER/<space>/bucket-*.parquet` hold its rows."""

    def __init__(self, folder: Path) -> None:
        self.name, self._folder = str(folder), folder
        check_outside(self.name)
        if os.path.lexists(folder) and not folder.is_dir():
            raise ExchangeError(f"{folder} is no folder; name a folder, which is made where there is none")
        strangers = [] if not folder.is_dir() else [path.name for path in folder.iterdir()]
        if strangers and CURRENT not in strangers and not any(_is_of_a_space(name) for name in strangers):
            raise ExchangeError(
                f"{folder} holds {strangers[0]!r}, which sync did not write; name an empty folder"
            )

    def mark(self) -> Mark | None:
        try:
            return Mark(**json.loads((self._folder / CURRENT).read_bytes()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError) as error:
            raise ExchangeError(
                f"{self._folder / CURRENT} is none that sync wrote ({error}); remove the folder, or name an empty one"
            ) from None

    def prepare(self, space: str, dim: int) -> None:
        self._of(space).mkdir(parents=True, exist_ok=True)

    def digests(self, space: str) -> Digests:
        found: dict[int, tuple[int, int]] = {}
        for bucket, path in self._files(space).items():
            rows = _rows(path, ["bucket", "digest"])
            if rows is None or set(rows["bucket"].to_pylist()) != {bucket}:
                found[bucket] = _DAMAGED
            else:
                found |= summed(rows["bucket"].to_numpy().astype(np.int64), rows["digest"].to_numpy())
        return found

    def count(self, space: str) -> int:
        tables = (_rows(path, []) for path in self._files(space).values())
        return sum(len(rows) for rows in tables if rows is not None)

    def replace(self, space: str, buckets: Sequence[int], rows: pa.Table, *, now: Now = "noted") -> None:
        for bucket in buckets:
            path = self._of(space) / _name(bucket)
            mine = rows.filter(pc.equal(rows["bucket"], bucket))
            if len(mine):
                write_whole(path, partial(pq.write_table, mine), durable=False)
            else:
                path.unlink(missing_ok=True)

    def switch(self, mark: Mark) -> None:
        data = json.dumps(mark.to_dict(), sort_keys=True).encode()
        write_whole(self._folder / CURRENT, lambda file: file.write(data))

    def drop_others(self, space: str) -> None:
        drop_strays(self._folder)
        drop_strays(self._of(space))
        for path in self._folder.glob("space-*"):
            if _is_of_a_space(path.name) and path != self._of(space):
                shutil.rmtree(path, ignore_errors=True)

    def read(self, space: str) -> Iterator[pa.Table]:
        for path in self._files(space).values():
            if (rows := _rows(path, None)) is not None:
                yield rows

    def close(self) -> None: ...

    def _of(self, space: str) -> Path:
        return self._folder / f"space-{space}"

    def _files(self, space: str) -> dict[int, Path]:
        """Return the files by bucket. Raises ExchangeError for another one that readers would take for theirs."""
        known = {_name(bucket): bucket for bucket in range(BUCKETS)}
        found = sorted(self._of(space).glob("bucket-*.parquet"))
        stranger = next((path for path in found if path.name not in known), None)
        if stranger is not None:
            raise ExchangeError(
                f"{stranger} is none that sync wrote, and readers take it for rows; remove it"
            )
        return {known[path.name]: path for path in found}


def _name(bucket: int) -> str:
    return f"bucket-{bucket:03d}.parquet"


def _rows(path: Path, columns: Sequence[str] | None) -> pa.Table | None:
    """Return rows of a file, all columns for None; None for a file that is not as sync writes them."""
    try:
        with pq.ParquetFile(path) as file:
            schema = file.schema_arrow
            if schema.names != _COLUMNS or schema.types[:-1] != ROWS.types:
                return None
            vectors = schema.types[-1]
            if not pa.types.is_fixed_size_list(vectors) or vectors.value_type != pa.float32():
                return None
            rows = file.read(columns)
    except (pa.ArrowException, OSError, ValueError):
        return None
    return None if any(column.null_count for column in rows.columns) else rows


def _is_of_a_space(name: str) -> bool:
    """Return whether this is the name of a folder that sync made."""
    return name.startswith("space-") and is_space(name.removeprefix("space-"))
