"""Files that are adopted have the classes and attributes that a landing of them would have; others are refused before
anything is made."""

from __future__ import annotations

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.exchange import files_source
from stream_odml.exchange.checking import Findings, Target, check
from stream_odml.exchange.errors import ExchangeError
from stream_odml.exchange.places import open_source
from stream_odml.exchange.source import Names, as_lists

VECTORS = [[1.0, 2.0], [3.0, 4.0]]
CLASSES = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}


def written(path: Path, note: dict[str, str] | None = None, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"vector": VECTORS, **columns}).replace_schema_metadata(note), path)
    return path


def adopted(path: Path, *attributes: str) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows as they are stored, and why the others are not."""
    source = open_source(str(path), Names(attributes=attributes), None)
    target = Target(dim=source.dim, version="v", codes=None, held_out=0.0)
    parts = [check(block.table, "s", target, Findings()) for block in source.blocks(None)]
    rows = [row for part in parts for row in part.rows.to_pylist()]
    return rows, [row["detail"] for part in parts for row in part.quarantine.to_pylist()]


def test_numbered_classes_have_their_names(tmp_path: Path) -> None:
    rows, problems = adopted(written(tmp_path / "a.parquet", CLASSES, label=[1, 0]))
    assert ([row["class_name"] for row in rows], problems) == (["dog", "cat"], [])
    rows, problems = adopted(written(tmp_path / "b.parquet", CLASSES, label=[1, 7]))
    assert ([row["class_name"] for row in rows], problems) == (
        ["dog"],
        ["label 7, but the file names 2 classes"],
    )
    for name, note in (("x", CLASSES), ("y", {"huggingface": CLASSES["huggingface"].replace("cat", "cow")})):
        written(tmp_path / f"set/{name}.parquet", note, label=[1, 0])
    with pytest.raises(ExchangeError, match="names the classes of 'label' otherwise than"):
        adopted(tmp_path / "set")


def test_memory_is_bounded_by_a_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """64 MiB in 32 row groups, and in one: Arrow holds a few blocks of a MiB, and what is read ahead for them."""
    monkeypatch.setattr(files_source, "rows_at_once", lambda dim: 1024)
    vectors = as_lists(np.random.default_rng(0).random((65_536, 256), np.float32))
    for groups in (32, 1):
        file = tmp_path / f"{groups}.parquet"
        pq.write_table(pa.table({"vector": vectors}), file, 65_536 // groups, use_dictionary=False)
        source = open_source(str(file), Names(), None)
        before, most = pa.total_allocated_bytes(), 0
        for block in source.blocks(None):
            del block
            most = max(most, pa.total_allocated_bytes() - before)
        assert most < 32 << 20


def test_attributes_are_those_of_a_landing_and_one_that_cannot_be_costs_its_row(tmp_path: Path) -> None:
    columns: dict[str, Any] = {
        "price": pa.array([0.1, 0.2], pa.float32()),
        "day": pa.array([date(2024, 5, 1), None]).cast(pa.date32()),
        "at": pa.array([1, 2**40 + 1], pa.timestamp("ns")),
        "tags": [["a"], None],
    }
    columns["far"] = pa.array([0, 2**31 - 1], pa.int32()).cast(pa.date32())
    rows, (problem,) = adopted(written(tmp_path / "a.parquet", **columns), *columns)
    assert [json.loads(row["attributes"]) for row in rows] == [
        {
            "price": "0.1",
            "day": "2024-05-01",
            "at": "1970-01-01T00:00:00.000000001",
            "tags": '["a"]',
            "far": "1970-01-01",
        }
    ]
    assert "days=2147483647" in problem


@pytest.mark.parametrize(
    "label", [[["a"], ["b"]], [{"a": 1}] * 2, pa.array([[("a", 1)]] * 2, pa.map_(pa.string(), pa.int64()))]
)
def test_a_column_that_names_no_class_is_refused(tmp_path: Path, label: Any) -> None:
    with pytest.raises(ExchangeError, match=r"column 'label' of .* names no class; name one .*--class"):
        adopted(written(tmp_path / "a.parquet", label=label))


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    made = pa.Table.from_arrays([pa.array(VECTORS), pa.array("ab"), pa.array("cd")], ["vector", "id", "id"])
    pq.write_table(made, tmp_path / "a.parquet")
    with pytest.raises(ExchangeError, match="has 2 columns 'id'; give all but one another name"):
        adopted(tmp_path / "a.parquet")


def test_tables_of_a_folder_are_found_and_what_systems_leave_is_not(tmp_path: Path) -> None:
    written(tmp_path / "set/A.PARQUET", label=["a", "b"])
    written(tmp_path / "set/sub/c.parquet", label=["c", "d"])
    (tmp_path / "set/._c.parquet").write_bytes(b"Mac OS X")
    assert [row["class_name"] for row in adopted(tmp_path / "set")[0]] == ["a", "b", "c", "d"]
    assert len(adopted(tmp_path / "set/A.PARQUET")[0]) == 2
    (tmp_path / "set/sub/_delta_log").mkdir()
    with pytest.raises(
        ExchangeError, match=r"sub cannot be adopted.*a Delta table, whose files hold deleted rows too"
    ):
        adopted(tmp_path / "set")


@pytest.mark.parametrize(
    ("arrays", "seen"),
    [
        ({"vector": np.zeros((0, 3))}, "has no rows; there is nothing to adopt"),
        ({"vector": np.ones((2, 3)), "label": np.ones((2, 1), int)}, "names no class"),
    ],
)
def test_archives_that_cannot_be_adopted(tmp_path: Path, arrays: dict[str, Any], seen: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ExchangeError, match=seen):
        adopted(tmp_path / "a.npz")


def test_an_encrypted_archive_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", vector=np.ones((2, 3)))
    data = bytearray((tmp_path / "a.npz").read_bytes())
    data[data.index(b"PK\3\4") + 6] |= 1
    data[data.index(b"PK\1\2") + 8] |= 1
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(ExchangeError, match="is encrypted"):
        adopted(tmp_path / "a.npz")


def test_folders_that_name_a_value_are_a_column_of_it(tmp_path: Path) -> None:
    for folder in ("class=sea%20lion/day=1", "class=__HIVE_DEFAULT_PARTITION__/day=2"):
        written(tmp_path / "set" / folder / "0.parquet", id=[f"{folder[6]}{at}" for at in range(2)])
    rows, problems = adopted(tmp_path / "set", "day")
    said = [(row["item_id"], row["class_name"], json.loads(row["attributes"])["day"]) for row in rows]
    assert said == [("_0", "", "2"), ("_1", "", "2"), ("s0", "sea lion", "1"), ("s1", "sea lion", "1")]
    assert problems == []
    before = open_source(str(tmp_path / "set"), Names(), None).identity
    (tmp_path / "set/class=sea%20lion").rename(tmp_path / "set/class=seal")
    assert open_source(str(tmp_path / "set"), Names(), None).identity != before, "of another class"


def test_the_first_file_of_a_folder_may_be_empty(tmp_path: Path) -> None:
    pq.write_table(pa.table({"vector": VECTORS}).slice(0, 0), _made(tmp_path / "set") / "0.parquet")
    written(tmp_path / "set/1.parquet")
    assert len(adopted(tmp_path / "set")[0]) == 2


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"vector": pa.array([[], []], pa.list_(pa.float32()))}, "has no vector in its first rows"),
        ({"vector": pa.array([[], []], pa.list_(pa.float32(), 0))}, "has no vector in its first rows"),
        (
            {"vector": [[[1.0]], [[2.0]]]},
            "no column of vectors, of vector; write one that is a list of numbers",
        ),
        (
            {"vector": pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(VECTORS))},
            "column 'vector' of .* is dictionary.*; name a list of numbers",
        ),
        ({"vector": VECTORS, "id": [["a"], ["b"]]}, "column 'id' of .* is no id; name one of .* with --id"),
    ],
)
def test_columns_of_types_that_cannot_be_adopted(tmp_path: Path, columns: dict[str, Any], says: str) -> None:
    table = pa.table(columns)
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as file:
        file.write_table(table)
    with pytest.raises(ExchangeError, match=says):
        adopted(tmp_path / "a.arrow")


def test_an_attribute_that_is_named_twice_is_one(tmp_path: Path) -> None:
    rows, _ = adopted(written(tmp_path / "a.parquet", price=["1", "2"]), "price", "price")
    assert [json.loads(row["attributes"]) for row in rows] == [{"price": "1"}, {"price": "2"}]


def test_classes_in_runs(tmp_path: Path) -> None:
    label = pa.RunEndEncodedArray.from_arrays(pa.array([2], pa.int32()), pa.array(["a"]))
    made = pa.table({"vector": VECTORS, "label": label})
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as file, pa.ipc.new_file(file, made.schema) as out:
        out.write_table(made)
    assert [row["class_name"] for row in adopted(tmp_path / "a.arrow")[0]] == ["a", "a"]
