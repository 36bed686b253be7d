"""Seam 25: what a metadata file says beside images is theirs; what it says in vain, twice or askew is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest.reading import RawItem
from tests.seams.folders import classes, ingest, rows, write
from tests.seams.test_25_layouts import metadata, table


def test_metadata_of_numbered_labels_has_their_names(tmp_path: Path) -> None:
    folder = write(tmp_path / "zoo", "a.png", "b.png", "c.png")
    note = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    made = pa.table({"file_name": ["a.png", "b.png", "c.png"], "label": [1, 0, 7]})
    pq.write_table(
        made.replace_schema_metadata({"huggingface": json.dumps(note)}), folder / "metadata.parquet"
    )
    ingest(folder, tmp_path / "in")
    assert classes(tmp_path / "in") == ["dog", "cat", "7"]


def test_a_comma_in_a_caption_makes_no_other_class(tmp_path: Path) -> None:
    folder = write(tmp_path / "zoo", "x/a.png")
    (folder / "metadata.csv").write_text("file_name,caption,label\nx/a.png,a cat, sitting,cat\n")
    lines = ingest(folder, tmp_path / "in")
    assert any("line 2 has 4 values for 3 columns" in line and "double quotes" in line for line in lines), (
        lines
    )
    (folder / "metadata.csv").write_text('file_name,caption,label\nx/a.png,"a cat, sitting",cat,,\n')
    ingest(folder, tmp_path / "out")
    assert (classes(tmp_path / "in"), classes(tmp_path / "out")) == (["x"], ["cat"])


@pytest.mark.parametrize(
    ("rows", "seen"),
    [
        ([{"label": "cat"}, {"label": "dog"}], "1 of them by several rows, of which the first counts ('x/a.png')"),
        ([{"label": True}], "1 that are no class kept as attributes (such as True)"),
        ([{"label": -1}], "(such as -1)"),
        ([{"label": ["a", "b"]}], "(such as ['a', 'b'])"),
        ([{"category": "cat"}], "no class, as none of its columns is `class_name` or `label`: file_name, category"),
        ([{"label": "cat"}, {"label": "cat"}], "metadata.jsonl describes 1 image"),
    ],
)  # fmt: skip
def test_what_metadata_says_in_vain_is_reported(
    tmp_path: Path, rows: list[dict[str, Any]], seen: str
) -> None:
    folder = write(tmp_path / "zoo", "x/a.png")
    metadata(folder / "metadata.jsonl", [{"file_name": "x/a.png"} | row for row in rows])
    lines = ingest(folder, tmp_path / "in")
    assert any(line.endswith(seen) for line in lines), lines


def test_metadata_files_that_contradict_each_other_are_reported(tmp_path: Path) -> None:
    folder = write(tmp_path / "zoo", "x/a.png", "x/b.png")
    metadata(folder / "metadata.csv", [{"file_name": "x/a.png", "label": "cat"}])
    metadata(folder / "metadata.jsonl", [{"file_name": "x/a.png", "label": "dog"}])
    lines = ingest(folder, tmp_path / "in")
    reported = "1 image (x/a.png) of metadata.jsonl another metadata file describes differently: metadata.jsonl counts"
    assert reported in lines
    assert classes(tmp_path / "in") == ["dog", "x"]


def test_attributes_of_metadata_that_are_a_map(tmp_path: Path) -> None:
    folder = write(tmp_path / "zoo", "x/a.png")
    columns = {
        "file_name": ["x/a.png"],
        "attributes": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64())),
    }
    table(folder / "metadata.parquet", **columns)
    ingest(folder, tmp_path / "in")
    (row,) = (row for row in rows(tmp_path / "in") if isinstance(row, RawItem))
    assert row.attributes == {"a": "1", "path": "x/a.png"}
