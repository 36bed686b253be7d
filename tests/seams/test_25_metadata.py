"""Seam 25: what a metadata file says beside images is theirs; what it says in vain, twice or askew is told."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest.reading import RawItem
from tests.memory import forget_peak, peak_mib
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


def test_a_table_of_metadata_is_decoded_within_a_bound(tmp_path: Path) -> None:
    """Half a gigabyte of one value out of some kilobytes: the folder is somebody else's."""
    folder = write(tmp_path / "zoo", "x/a.png")
    schema = pa.schema({"file_name": pa.string(), "label": pa.string(), "caption": pa.string()})
    with pq.ParquetWriter(
        folder / "metadata.parquet", schema, compression="zstd", use_dictionary=False
    ) as file:
        for _ in range(8):
            part = {"file_name": ["x/a.png"] * 64, "label": ["cat"] * 64, "caption": ["x" * (1 << 20)] * 64}
            file.write_table(pa.table(part, schema))
    forget_peak()
    before = peak_mib()
    lines = ingest(folder, tmp_path / "in")
    assert peak_mib() - before < 300
    assert any("metadata.parquet passed over" in line and "memory" in line for line in lines), lines
    assert classes(tmp_path / "in") == ["x"]


ODD = {"when": datetime(2026, 5, 1, tzinfo=UTC), "price": Decimal("1.50"), "id": UUID(int=7).bytes, "n": math.nan,
       "tags": ["a", None], "box": {"x": 1}, "note": None}  # fmt: skip


def test_a_table_of_metadata_keeps_values_of_any_type(tmp_path: Path) -> None:
    folder = write(tmp_path / "zoo", "a.png")
    described = pa.table(
        {"file_name": ["a.png"], "label": ["cat"]} | {name: [value] for name, value in ODD.items()}
    )
    pq.write_table(described, folder / "metadata.parquet")
    ingest(folder, tmp_path / "in")
    (item,) = rows(tmp_path / "in")
    assert isinstance(item, RawItem)
    assert item.attributes == {
        "when": "2026-05-01T00:00:00+00:00", "price": "1.50", "id": "0" * 31 + "7", "tags": '["a", null]',
        "box": '{"x": 1}', "path": "a.png",
    }  # fmt: skip


def test_metadata_in_utf_16_and_with_a_whole_document_is_read(tmp_path: Path) -> None:
    folder = write(tmp_path / "zoo", "a.png", "b.png")
    text = f"file_name\tlabel\tdocument\na.png\tKätzchen\t{'x' * 200_000}\nb.png\tдомен\tshort\n"
    for encoding in ("utf-16", "utf-8-sig"):
        (folder / "metadata.csv").write_bytes(text.encode(encoding))
        ingest(folder, tmp_path / encoding)
        assert classes(tmp_path / encoding) == ["Kätzchen", "домен"]


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        ('{"file_name": "x/a.png", "n": ' + "9" * 5000 + "}", "line 2 is no JSON, or has a number or a nesting beyond"),
        ('{"file_name": "x/a.png", "n": ' + "[" * 10**5 + "]" * 10**5 + "}", "line 2 is no JSON, or has a number or"),
        ('{"file_name": "x/a.png", "n": 1, "n": 2}', "line 2: the name 'n' comes twice"),
        ("[1]", "line 2 holds list, expected an object"),
    ],
)  # fmt: skip
def test_a_line_of_metadata_that_cannot_be_read_is_named(tmp_path: Path, line: str, seen: str) -> None:
    folder = write(tmp_path / "zoo", "x/a.png")
    (folder / "metadata.jsonl").write_text(f'{{"file_name": "x/a.png", "label": "cat"}}\n{line}\n')
    lines = ingest(folder, tmp_path / "in")
    assert any(f"metadata.jsonl passed over: {seen}" in said for said in lines), lines
