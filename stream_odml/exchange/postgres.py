"""PostgreSQL with pgvector: a connection to it, and galleries out of its tables."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from stream_odml.exchange.errors import ExchangeError, SourceLost, library
from stream_odml.exchange.source import (
    ATTRIBUTES,
    CLASS,
    ID,
    VECTOR,
    Block,
    Names,
    as_lists,
    identity_of_place,
    rows_at_once,
    text_of,
)
from stream_odml.exchange.urls import PASSWORD_REMEDY, Place, connection_of, place_of
from stream_odml.ingest.rawrow import NAMES
from stream_odml.ingest.served_vectors import origin_of
from stream_odml.wording import first_line

EXAMPLE = "postgresql://USER:PASSWORD@HOST/DATABASE?table=NAME"
EXTRA = "postgres"
_VECTOR_TYPES = ("vector", "halfvec")
_LISTS = ("sparsevec", "_float4", "_float8")
"""Types that are vectors where somebody says so; of an array PostgreSQL puts `_` before the name."""
_LENGTHS = {
    "sparsevec": "vector_dims({v}::vector)",
    "_float4": "array_length({v}, 1)",
    "_float8": "array_length({v}, 1)",
}
"""What gives the length of a vector, by the type of its column."""
_NO_CLASSES = ("bytea", "json", "jsonb", "xml", *_VECTOR_TYPES, *_LISTS)
_NO_IDS = ("bytea", "bool", "json", "jsonb", "xml", *_VECTOR_TYPES, *_LISTS)
PATIENCE_S = 30
"""For a connection, where neither URL nor environment say; a server on a busy machine took more than ten."""


def connect(url: str, *, prepare: bool = False) -> tuple[Any, Place]:
    """Return a connection that knows vectors, and what a URL names. `prepare`: make pgvector's extension there. Raises
    ExchangeError in one line, without the password."""
    psycopg = library("psycopg", EXTRA)
    place = place_of(url, EXAMPLE)
    if "table" not in place.options:
        raise ExchangeError(f"{place.shown} names no table; expected {EXAMPLE}")
    try:
        psycopg.conninfo.conninfo_to_dict(connection_of(url))
    except psycopg.Error:  # whose words quote what cannot be read: the password
        raise ExchangeError(f"{place.shown} cannot be read; {PASSWORD_REMEDY}") from None
    is_said = "connect_timeout" in place.options or os.environ.get("PGCONNECT_TIMEOUT")
    patience = {} if is_said else {"connect_timeout": PATIENCE_S}
    try:
        connection = psycopg.connect(connection_of(url), autocommit=True, **patience)
    except psycopg.errors.ConnectionTimeout:
        raise ExchangeError(
            f"{place.shown} does not answer; check host and port, or give a busy server longer with "
            "connect_timeout=SECONDS in the URL"
        ) from None
    except psycopg.Error as error:
        raise ExchangeError(
            f"{place.shown} cannot be opened: {first_line(error)}; "
            "check host, user, password (or PGPASSWORD) and database"
        ) from None
    register = library("pgvector.psycopg", EXTRA).register_vector
    try:
        is_there = connection.execute("SELECT 1 FROM pg_extension WHERE extname = 'vector'").fetchone()
        if prepare and not is_there:
            connection.execute("CREATE EXTENSION IF NOT EXISTS vector")
        register(connection)
    except psycopg.Error as error:
        remedy = (
            "install it there, or name another database" if prepare else "run CREATE EXTENSION vector there"
        )
        raise ExchangeError(f"{place.shown} has no pgvector: {first_line(error)}; {remedy}") from None
    return connection, place


class PostgresSource:
    """A `GallerySource`: rows of a table in the order of its ids."""

    note = ""

    def __init__(self, url: str, names: Names) -> None:
        self._connection, self._place = connect(url)
        self.name = self._place.shown
        sql = library("psycopg.sql", EXTRA)
        self._columns = self._look()
        self.origin = origin_of(self._columns)
        self._vector = self._named(names.vector, "--vector") or self._only()
        self._id = self._named(names.id, "--id") or self._primary()
        self._class = self._named(names.class_name, "--class") or self._class_column()
        self._attributes = [str(self._named(name, "--attributes")) for name in names.attributes]
        self._check_types()
        self._table = sql.Identifier(*self._place.name.split("."))
        wanted = [self._id, self._vector, *([self._class] if self._class else []), *self._attributes]
        self._select = sql.SQL("SELECT {} FROM {}").format(
            sql.SQL(", ").join(map(sql.Identifier, wanted)), self._table
        )
        self._order = sql.SQL(" ORDER BY {} LIMIT %s").format(sql.Identifier(self._id))
        self._after = sql.SQL(" WHERE {} > %s").format(sql.Identifier(self._id))
        self.dim = self._length()
        query = sql.SQL("SELECT count(*), count(*) - count({}) FROM {}")
        count, nameless = self._one(query.format(sql.Identifier(self._id), self._table))
        if nameless:
            raise ExchangeError(
                f"{self.name} has {nameless} rows without {self._id!r}; name a column with unique ids with --id"
            )
        self.count = int(count)
        place = self._place
        self.identity = identity_of_place(place.host, place.port, place.folder, self.name, wanted)

    def blocks(self, cursor: Any) -> Iterator[Block]:
        """Yield blocks; the cursor is the last id."""
        psycopg = library("psycopg", EXTRA)
        size = rows_at_once(self.dim)
        while True:
            query = self._select if cursor is None else self._select + self._after
            given = [size] if cursor is None else [cursor, size]
            try:
                rows = self._connection.execute(query + self._order, given).fetchall()
            except psycopg.Error as error:
                with contextlib.suppress(ExchangeError):  # the next attempt says so
                    self._connection, _ = connect(self._place.url)
                raise SourceLost(f"{self.name}: {first_line(error)}") from error
            if not rows:
                return
            last = rows[-1][0]
            cursor = last if isinstance(last, int | str) else str(last)
            yield Block(self._as_table(rows), cursor)

    def _as_table(self, rows: list[tuple[Any, ...]]) -> pa.Table:
        vectors = [None if row[1] is None else values_of(row[1]) for row in rows]
        columns: dict[str, Any] = {ID: [_plain(row[0]) for row in rows]}
        whole = [vector for vector in vectors if vector is not None and len(vector) == self.dim]
        fits = len(whole) == len(vectors)
        columns[VECTOR] = as_lists(np.stack(whole)) if fits else pa.array(vectors, pa.list_(pa.float32()))
        if self._class:
            columns[CLASS] = [_plain(row[2]) for row in rows]
        if self._attributes:
            first = 3 if self._class else 2
            named = (zip(self._attributes, row[first:], strict=True) for row in rows)
            columns[ATTRIBUTES] = [
                {name: self._said(name, value) for name, value in pairs} for pairs in named
            ]
        return pa.table(columns)

    def _length(self) -> int:
        """Return the length of most vectors: a column may have none of its own."""
        sql, kind = library("psycopg.sql", EXTRA), self._columns[self._vector]
        length = _LENGTHS.get(kind, "vector_dims({v})")
        some = "LIMIT 1" if self._vector in self._of_one_length else ""
        rows = f"SELECT {length} AS n FROM {{t}} WHERE {{v}} IS NOT NULL {some}"
        query = f"SELECT n FROM ({rows}) AS lengths GROUP BY n ORDER BY count(*) DESC, n LIMIT 1"
        found = self._one(sql.SQL(query).format(v=sql.Identifier(self._vector), t=self._table))
        if found is None or not found[0]:
            raise ExchangeError(f"{self.name} has no row with a vector; there is nothing to adopt")
        return int(found[0])

    def _look(self) -> dict[str, str]:
        rows = self._connection.execute(
            "SELECT a.attname, t.typname, a.atttypmod FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
            "WHERE a.attrelid = to_regclass(%s) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            [quoted(self._place.name)],
        ).fetchall()
        if not rows:
            raise ExchangeError(f"{self.name}: there is no table {self._place.name!r}; name one with ?table=")
        self._of_one_length = {name for name, _, length in rows if length > 0}
        return {name: kind for name, kind, _ in rows}

    def _named(self, name: str | None, option: str) -> str | None:
        if name is not None and name not in self._columns:
            raise ExchangeError(
                f"{self.name} has no column {name!r}; it has {', '.join(self._columns)}: name one of them with {option}"
            )
        return name

    def _only(self) -> str:
        """Return the one column of vectors."""
        found = [name for name, kind in self._columns.items() if kind in _VECTOR_TYPES]
        if len(found) != 1:
            raise ExchangeError(
                f"{self.name} has {len(found)} columns of type vector, of {', '.join(self._columns)}; "
                "name one of them, of sparse vectors or of numbers (real[]) with --vector"
            )
        return found[0]

    def _check_types(self) -> None:
        """Raise ExchangeError where columns that were named cannot be what they were named as."""
        kind = self._columns[self._vector]
        if kind not in (*_VECTOR_TYPES, *_LISTS):
            raise ExchangeError(
                f"column {self._vector!r} of {self.name} is {kind.replace('_', 'an array of ')}; "
                "name one of type vector, halfvec, sparsevec or real[] with --vector"
            )
        kind = self._columns[self._id]
        if kind in _NO_IDS:
            raise ExchangeError(
                f"column {self._id!r} of {self.name} is {kind}; name one of text, numbers or UUIDs with --id"
            )

    def _said(self, name: str, value: Any) -> Any:
        return text_of(value) if self._columns[name] in ("json", "jsonb") else _plain(value)

    def _primary(self) -> str:
        for name in ("id", "item_id"):
            if name in self._columns:
                return name
        raise ExchangeError(f"{self.name} has no column id; name the one with unique ids with --id")

    def _class_column(self) -> str | None:
        columns = self._columns
        return next((name for name in NAMES["label"] if columns.get(name, "json") not in _NO_CLASSES), None)

    def _one(self, query: Any) -> Any:
        return self._connection.execute(query).fetchone()


def values_of(vector: Any) -> Any:
    """Return a vector as pgvector gives it: an array, or its own class."""
    return np.asarray(vector.to_numpy() if hasattr(vector, "to_numpy") else vector, np.float32)


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else text_of(value)


def quoted(name: str) -> str:
    """Return a name, with its schema before a dot, as SQL has it: letters as they are, large and small."""
    return ".".join('"' + part.replace('"', '""') + '"' for part in name.split("."))
