"""LanceDB: galleries out of its tables, and ours in them.

Protects: what readers ask is one table, which is overwritten by one commit of Lance when the space changes; a sync
leaves neither old versions of it nor deleted rows in its files, for both hold what was erased.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa

from stream_odml.exchange.errors import ExchangeError, SourceLost, library
from stream_odml.exchange.source import (
    VECTOR,
    Block,
    Names,
    choose,
    identity_of_place,
    length_of,
    rows_at_once,
)
from stream_odml.exchange.target import ROWS, Digests, Mark, Now, difference, is_table_of, summed, table_name
from stream_odml.exchange.urls import Place, check_folder, check_outside, place_of
from stream_odml.ingest.served_vectors import origin_of
from stream_odml.wording import first_line

EXAMPLE = "lancedb:///FOLDER/TABLE"
EXTRA = "lancedb"
_MARK = b"stream_odml"
_READ = 2048
_FAILURES = (OSError, ValueError, RuntimeError)
"""What the library raises, by what it was that failed: it has no error of its own."""


def connect(url: str) -> tuple[Any, Place]:
    """Return a connection and what a URL names. Raises ExchangeError."""
    place = place_of(url, EXAMPLE)
    if place.host:
        raise ExchangeError(
            f"{place.shown}: LanceDB is a folder, and {place.host!r} stands where a server would; "
            f"expected {EXAMPLE}, with three slashes"
        )
    lancedb = library("lancedb", EXTRA)
    try:
        return lancedb.connect(place.folder), place
    except _FAILURES as error:
        raise ExchangeError(
            f"{place.shown} cannot be opened: {first_line(error)}; expected {EXAMPLE}"
        ) from None


def _tables(connection: Any) -> list[str]:
    names: list[str] = []
    page: Any = None
    while True:
        found = connection.list_tables(page_token=page, limit=1000)
        names += found.tables
        page = found.page_token
        if not page:
            return names


class LanceSource:
    """A `GallerySource`: rows of a table as it is when it is opened."""

    note = ""

    def __init__(self, url: str, names: Names) -> None:
        check_folder(place_of(url, EXAMPLE))
        connection, place = connect(url)
        self.name = place.shown
        try:
            self._table = connection.open_table(place.name)
        except _FAILURES as error:
            known = ", ".join(_tables(connection)[:20])
            there = (
                f"there are {known}: name one of them" if known else "that folder holds none; name another"
            )
            raise ExchangeError(
                f"{self.name}: there is no table {place.name!r} ({first_line(error)[:80]}); {there}"
            ) from None
        self._chosen = choose(self._table.schema, names, self.name)
        self.origin = origin_of(self._table.schema.names, self._table.schema.metadata)
        self.count = int(self._table.count_rows())
        first = self._table.search().select([self._chosen.vector]).limit(_READ // 2).to_arrow()
        if not len(first):
            raise ExchangeError(f"{self.name} has no rows; there is nothing to adopt")
        self.dim = length_of(pa.table({VECTOR: first[self._chosen.vector]})[VECTOR], self.name)
        self.identity = identity_of_place(place.folder, place.name, self._table.version, self._chosen)

    def blocks(self, cursor: Any) -> Iterator[Block]:
        at, size = int(cursor or 0), rows_at_once(self.dim)
        while at < self.count:
            try:
                rows = self._table.search().select(self._chosen.columns).offset(at).limit(size).to_arrow()
            except _FAILURES as error:
                raise SourceLost(f"{self.name}: {first_line(error)}") from error
            if not len(rows):
                return
            at += len(rows)
            yield Block(self._chosen.block(rows), at)


class LanceTarget:
    """A `SyncTarget`: a table that is filled aside for each new space, and the one of the name that readers ask."""

    def __init__(self, url: str) -> None:
        check_outside(place_of(url, EXAMPLE).folder)
        self._connection, self._place = connect(url)
        self.name = self._place.shown
        library("lance", EXTRA)  # before a row is written: `drop_others` needs it
        if self._place.name in _tables(self._connection) and self.mark() is None:
            raise ExchangeError(
                f"{self.name}: {self._place.name!r} is a table that sync did not make; name another"
            )

    def mark(self) -> Mark | None:
        mark = _said_by(self._open(self._place.name))
        if mark is None:
            return None
        noted = self._open(self._marks)
        for row in () if noted is None else noted.search().to_list():
            if row["space"] == mark.space:
                stream = row.get("stream", mark.stream)
                return replace(mark, version=row["version"], sequence=int(row["sequence"]), stream=stream)
        return mark

    def prepare(self, space: str, dim: int) -> None:
        if self._of(space) is None:
            schema = ROWS.append(pa.field("vector", pa.list_(pa.float32(), dim)))
            self._connection.create_table(table_name(self._place.name, space), schema=schema, exist_ok=True)

    def digests(self, space: str) -> Digests:
        table = self._of(space)
        if table is None or not table.count_rows():
            return {}
        rows = table.search().select(["bucket", "digest"]).limit(table.count_rows()).to_arrow()
        return summed(rows["bucket"].to_numpy().astype(np.int64), rows["digest"].to_numpy())

    def count(self, space: str) -> int:
        table = self._of(space)
        return 0 if table is None else int(table.count_rows())

    def replace(self, space: str, buckets: Sequence[int], rows: pa.Table, *, now: Now = "noted") -> None:
        # A merge goes through the whole table: what can be appended is.
        table, mine = self._of(space), f"bucket IN ({', '.join(map(str, buckets))})"
        if not len(rows):
            table.delete(mine)
            return
        if now == "nothing":
            table.add(rows)
            return
        most = max(1, table.count_rows())
        held = table.search().where(mine).select(["id", "digest"]).limit(most).to_arrow()
        there = dict(zip(held["id"].to_pylist(), held["digest"].to_pylist(), strict=True))
        if len(there) < len(held):  # an id is there twice: two syncs wrote at once
            table.delete(mine)
            table.add(rows)
            return
        new, gone = difference(rows, there, damaged=now == "damaged")
        if not gone and there.keys().isdisjoint(new["id"].to_pylist()):
            table.add(new)
            return
        merge = table.merge_insert("id").when_matched_update_all().when_not_matched_insert_all()
        if gone:
            merge.when_not_matched_by_source_delete(mine).execute(rows)
        else:
            merge.execute(new)

    def switch(self, mark: Mark) -> None:
        live = self.mark()
        if live is None or live.space != mark.space:
            staged = self._open(table_name(self._place.name, mark.space))
            data = staged.search().limit(max(1, staged.count_rows())).to_arrow()
            data = data.replace_schema_metadata({_MARK: json.dumps(mark.to_dict()).encode()})
            self._connection.create_table(self._place.name, data=data, mode="overwrite")
        note = pa.Table.from_pylist([mark.to_dict()]).drop_columns(["dim"])
        self._connection.create_table(self._marks, data=note, mode="overwrite")

    def drop_others(self, space: str) -> None:
        try:
            # The table of this space was filled aside; readers have its rows now.
            for name in _tables(self._connection):
                if is_table_of(self._place.name, name):
                    self._connection.drop_table(name, ignore_missing=True)
            for name in (self._place.name, self._marks):
                self._drop_replaced(name)
        except _FAILURES as error:
            raise ExchangeError(
                f"{self.name} is in step, but rows that it replaced could not be deleted: {first_line(error)}; "
                "is another sync writing there? Run it again"
            ) from None

    def _drop_replaced(self, name: str) -> None:
        """Delete every version of a table but the last, and rows that only a list of deletions hides in its files. A
        reader that holds an older version gets an error, and opens the table again; one with a tag stays."""
        table = self._open(name)
        if table is None or len(table.list_versions()) < 2:
            return
        dataset = table.to_lance()
        # LanceDB's own `optimize` leaves deleted rows where they are few.
        dataset.optimize.compact_files(materialize_deletions_threshold=0.0)
        dataset.cleanup_old_versions(timedelta(0), error_if_tagged_old_versions=False)

    def read(self, space: str) -> Iterator[pa.Table]:
        table = self._of(space)
        count = 0 if table is None else table.count_rows()
        for at in range(0, count, _READ):
            yield table.search().offset(at).limit(_READ).to_arrow()

    def close(self) -> None: ...

    @property
    def _marks(self) -> str:
        return f"{self._place.name}__marks"

    def _of(self, space: str) -> Any:
        """Return the table with the rows of a space: what readers see, or the one aside."""
        live = self._open(self._place.name)
        mark = _said_by(live)
        return live if mark and mark.space == space else self._open(table_name(self._place.name, space))

    def _open(self, name: str) -> Any:
        return self._connection.open_table(name) if name in _tables(self._connection) else None


def _said_by(table: Any) -> Mark | None:
    """Return what a table that readers ask says of itself; None for none, and for one that sync did not make."""
    said = None if table is None else (table.schema.metadata or {}).get(_MARK)
    return None if said is None else Mark(**json.loads(said))
