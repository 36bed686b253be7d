"""Ours in PostgreSQL with pgvector: a table for each space, behind a view of the name that readers ask.

Protects: each bucket is one transaction; the view that readers ask is replaced in the transaction that notes its space,
and keeps what was granted on it; nothing is touched that sync did not make.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Concatenate, ParamSpec, TypeVar

import numpy as np
import pyarrow as pa

from stream_odml.exchange.errors import ExchangeError, library
from stream_odml.exchange.postgres import EXAMPLE, EXTRA, connect, quoted, values_of
from stream_odml.exchange.source import as_lists, vectors_of
from stream_odml.exchange.target import ROWS, Digests, Mark, Now, difference, is_table_of, table_name
from stream_odml.exchange.urls import place_of
from stream_odml.wording import first_line

MARKS = "stream_odml_sync"
_TYPES = ("text", "text", "text", "text", "int4", "int8", "vector")
"""Of the columns of a space's table."""
_BATCH = 1000
_SPACE = 16
"""Bytes that tell a space in the name of its table."""
_MAX_NAME = 63
"""Bytes of a name; PostgreSQL cuts off what is longer."""
_REMEDIES = {
    "DependentObjectsStillExist": "something reads what is replaced: drop that, and make it again after this run",
    "InsufficientPrivilege": "let this user make tables there: GRANT CREATE ON SCHEMA … TO …",
    "ReadOnlySqlTransaction": "name the primary server, which can be written to",
    "InvalidSchemaName": "make the schema first: CREATE SCHEMA …",
}
"""By the name of the error."""

_VIEW = """
SELECT pg_get_userbyid(c.relowner), c.reloptions, a.atttypmod
FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'vector' WHERE c.oid = to_regclass(%s)"""
"""Owner, options and length of the vectors of a view."""
_GRANTS = """
SELECT g.attname, CASE WHEN g.grantee <> 0 THEN pg_get_userbyid(g.grantee) END, g.privilege_type, g.is_grantable
FROM (
    SELECT NULL::name AS attname, relowner, a.* FROM pg_class, aclexplode(relacl) a WHERE oid = to_regclass(%s)
    UNION ALL
    SELECT attname, relowner, a.* FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(attacl) a
    WHERE c.oid = to_regclass(%s)
) g WHERE g.grantee <> g.relowner"""
"""On a table or view and on its columns, to others than its owner."""

P = ParamSpec("P")
R = TypeVar("R")


def _in_words(
    method: Callable[Concatenate[PostgresTarget, P], R],
) -> Callable[Concatenate[PostgresTarget, P], R]:
    """Raise what the server refuses as an ExchangeError in one line."""

    @functools.wraps(method)
    def spoken(self: PostgresTarget, /, *args: P.args, **more: P.kwargs) -> R:
        try:
            return method(self, *args, **more)
        except library("psycopg", EXTRA).Error as error:
            remedy = _REMEDIES.get(
                type(error).__name__, "nothing that readers see has changed; correct that and run it again"
            )
            raise ExchangeError(
                f"{self.name} refuses what sync does: {first_line(error)}; {remedy}"
            ) from error

    return spoken


class PostgresTarget:
    """A `SyncTarget`: a table for each space, and a view of the name that readers ask."""

    @_in_words
    def __init__(self, url: str) -> None:
        self.name = place_of(url, EXAMPLE).shown
        self._connection, self._place = connect(url, prepare=True)
        self._sql = library("psycopg.sql", EXTRA)
        *self._schema, self._stem = self._place.name.split(".")
        if len(self._schema) > 1 or not all([*self._schema, self._stem]):
            raise ExchangeError(f"{self.name}: {self._place.name!r} is no name; expected NAME or SCHEMA.NAME")
        over = len(table_name(self._stem, "x" * _SPACE).encode()) - _MAX_NAME
        if over > 0:
            raise ExchangeError(
                f"{self.name}: {self._stem!r} is too long by {over} bytes, as PostgreSQL cuts names off after "
                f"{_MAX_NAME} and those of tables that sync makes are longer; name a shorter one"
            )
        reads = self._reads()
        if reads is not None and not (reads and all(is_table_of(self._stem, name) for name in reads)):
            raise ExchangeError(
                f"{self.name}: {self._place.name!r} is a view that sync did not make; name another"
            )
        self._connection.execute(
            f"CREATE TABLE IF NOT EXISTS {MARKS} "
            "(name text PRIMARY KEY, space text, version text, sequence bigint, dim int)"
        )
        self._connection.execute(
            f"ALTER TABLE {MARKS} ADD COLUMN IF NOT EXISTS stream text NOT NULL DEFAULT ''"
        )

    def _reads(self) -> list[str] | None:
        """Return the tables that the view of readers reads; None where there is none. Raises ExchangeError where
        something else has its name."""
        found = self._connection.execute(
            "SELECT oid, relkind::text FROM pg_class WHERE oid = to_regclass(%s)", [quoted(self._place.name)]
        ).fetchone()
        if found is None:
            return None
        if found[1] != "v":
            raise ExchangeError(
                f"{self.name}: {self._place.name!r} is a table that sync did not make; name another"
            )
        rows = self._connection.execute(
            "SELECT DISTINCT c.relname FROM pg_rewrite r JOIN pg_depend d ON d.objid = r.oid "
            "JOIN pg_class c ON c.oid = d.refobjid WHERE d.classid = 'pg_rewrite'::regclass "
            "AND d.refclassid = 'pg_class'::regclass AND r.ev_class = %s AND c.oid <> r.ev_class", [found[0]]
        ).fetchall()  # fmt: skip
        return [name for (name,) in rows]

    @_in_words
    def mark(self) -> Mark | None:
        row = self._connection.execute(
            f"SELECT space, version, sequence, dim, stream FROM {MARKS} WHERE name = %s", [self._place.name]
        ).fetchone()
        if row is None:
            return None
        mark = Mark(*row)
        return mark if self._reads() == [table_name(self._stem, mark.space)] else replace(mark, space="")

    @_in_words
    def prepare(self, space: str, dim: int) -> None:
        query = (
            "CREATE TABLE IF NOT EXISTS {} (id text PRIMARY KEY, class_name text, attributes text, version text, "
            "bucket int, digest bigint, vector vector({}))"
        )
        self._connection.execute(self._sql.SQL(query).format(self._table(space), self._sql.Literal(dim)))

    @_in_words
    def digests(self, space: str) -> Digests:
        query = self._sql.SQL("SELECT bucket, count(*), sum(digest::numeric) FROM {} GROUP BY bucket")
        rows = self._connection.execute(query.format(self._table(space))).fetchall()
        return {int(bucket): (int(count), int(total) % 2**64) for bucket, count, total in rows}

    @_in_words
    def count(self, space: str) -> int:
        if self._connection.execute("SELECT to_regclass(%s)", [self._named(space)]).fetchone() in (
            None,
            (None,),
        ):
            return 0
        query = self._sql.SQL("SELECT count(*) FROM {}").format(self._table(space))
        return int(self._connection.execute(query).fetchone()[0])

    @_in_words
    def replace(self, space: str, buckets: Sequence[int], rows: pa.Table, *, now: Now = "noted") -> None:
        table = self._table(space)
        held = self._sql.SQL("SELECT id, digest FROM {} WHERE bucket = ANY(%s)").format(table)
        delete = self._sql.SQL("DELETE FROM {} WHERE id = ANY(%s)").format(table)
        copy = self._sql.SQL(
            "COPY {} (id, class_name, attributes, version, bucket, digest, vector) FROM STDIN (FORMAT BINARY)"
        ).format(table)
        with self._connection.transaction(), self._connection.cursor() as cursor:
            there = dict(cursor.execute(held, [list(buckets)]).fetchall())
            new, gone = difference(rows, there, damaged=now == "damaged")
            if replaced := [*gone, *(one for one in new["id"].to_pylist() if one in there)]:
                cursor.execute(delete, [replaced])
            with cursor.copy(copy) as sink:
                sink.set_types(_TYPES)
                columns = [new[name].to_pylist() for name in ROWS.names]
                vectors, _ = vectors_of(new["vector"], new.schema.field("vector").type.list_size)
                for row in zip(*columns, vectors, strict=True):
                    sink.write_row(row)

    @_in_words
    def switch(self, mark: Mark) -> None:
        before = self.mark()
        with self._connection.transaction():
            if before is None or before.space != mark.space:
                self._show(mark, before)
            self._connection.execute(
                f"INSERT INTO {MARKS} (name, space, version, sequence, dim, stream) VALUES (%s, %s, %s, %s, %s, %s) "
                "ON CONFLICT (name) DO UPDATE SET space = EXCLUDED.space, version = EXCLUDED.version, "
                "sequence = EXCLUDED.sequence, dim = EXCLUDED.dim, stream = EXCLUDED.stream",
                [self._place.name, mark.space, mark.version, mark.sequence, mark.dim, mark.stream],
            )

    @_in_words
    def drop_others(self, space: str) -> None:
        keep = table_name(self._stem, space)
        rows = self._connection.execute(
            "SELECT o.relname FROM pg_class o JOIN pg_class k ON k.relnamespace = o.relnamespace "
            "WHERE k.oid = to_regclass(%s) AND o.relkind = 'r' AND starts_with(o.relname, %s)",
            [self._named(space), table_name(self._stem, "")]
        ).fetchall()  # fmt: skip
        for (name,) in rows:
            if is_table_of(self._stem, name) and name != keep:
                table = self._sql.Identifier(*self._schema, name)
                self._connection.execute(self._sql.SQL("DROP TABLE {}").format(table))

    def read(self, space: str) -> Iterator[pa.Table]:
        query = self._sql.SQL("SELECT id, class_name, attributes, version, bucket, digest, vector FROM {}")
        with self._connection.transaction(), self._connection.cursor("read", binary=True) as cursor:
            cursor.execute(query.format(self._table(space)))
            while rows := cursor.fetchmany(_BATCH):
                *columns, vectors = zip(*rows, strict=True)
                parts = [pa.array(column, field.type) for column, field in zip(columns, ROWS, strict=True)]
                table = pa.table(parts, schema=ROWS)
                yield table.append_column("vector", as_lists(np.stack([values_of(v) for v in vectors])))

    def close(self) -> None:
        self._connection.close()

    def _table(self, space: str) -> Any:
        return self._sql.Identifier(*self._schema, table_name(self._stem, space))

    def _named(self, space: str) -> str:
        return quoted(".".join([*self._schema, table_name(self._stem, space)]))

    def _show(self, mark: Mark, before: Mark | None) -> None:
        """Make the view read the table of a space. It stays the view that it was where vectors have their length of
        before, or is made anew with the owner, options and grants that it had; the table gets those of the last one."""
        sql, named = self._sql, quoted(self._place.name)
        view = sql.Identifier(*self._schema, self._stem)
        was = self._connection.execute(_VIEW, [named]).fetchone()
        granted = self._grants(named)
        if was is not None and was[2] != mark.dim:
            self._connection.execute(sql.SQL("DROP VIEW {}").format(view))
        query = "CREATE OR REPLACE VIEW {} AS SELECT id, class_name, attributes, version, vector FROM {}"
        self._connection.execute(sql.SQL(query).format(view, self._table(mark.space)))
        if was is None:
            return
        for option in was[1] or ():
            name, _, value = option.partition("=")
            query = "ALTER VIEW {} SET ({} = {})"
            self._connection.execute(sql.SQL(query).format(view, sql.Identifier(name), sql.Literal(value)))
        self._grant(granted, view)
        self._connection.execute(sql.SQL("ALTER VIEW {} OWNER TO {}").format(view, sql.Identifier(was[0])))
        if before is not None:
            self._grant(self._grants(self._named(before.space)), self._table(mark.space))

    def _grants(self, named: str) -> list[Any]:
        return list(self._connection.execute(_GRANTS, [named, named]).fetchall())

    def _grant(self, granted: list[Any], on: Any) -> None:
        sql = self._sql
        for column, grantee, privilege, is_grantable in granted:
            columns = sql.SQL("") if column is None else sql.SQL(" ({})").format(sql.Identifier(column))
            to = sql.SQL("PUBLIC") if grantee is None else sql.Identifier(grantee)
            ending = sql.SQL(" WITH GRANT OPTION" if is_grantable else "")
            query = sql.SQL("GRANT {}{} ON {} TO {}{}").format(sql.SQL(privilege), columns, on, to, ending)
            self._connection.execute(query)
