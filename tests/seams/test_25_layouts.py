"""Seam 25: the layouts that people's data sets have are read, or refused before they land, in words.

What is refused names what was seen and what is expected, and leaves the inbox as it was.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest.landing import land_file
from stream_odml.ingest.reading import RawItem
from stream_odml.ingest.shard import MANIFEST_NAME, ManifestFile, ShardManifest
from tests.ingest.helpers import seal
from tests.ingest.pictures import picture
from tests.seams.folders import classes, ingest, rows, write
from tests.store.world import new_root

ROWS: list[dict[str, Any]] = [
    {"file_name": "a.png", "label": "cat", "shelf": "007", "price": "3"},
    {"file_name": "sub/b.png", "label": "dog", "shelf": "008", "price": "4"},
]


def metadata(path: Path, described: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(described), path)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, described)) + "\n\n", encoding="utf-8")
    else:
        with path.open("w", encoding="utf-8-sig", newline="") as file:
            writer = csv.DictWriter(file, list(described[0]))
            writer.writeheader()
            writer.writerows(described)


def table(path: Path, **columns: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_metadata_of_an_image_folder_is_what_its_images_are(tmp_path: Path, suffix: str) -> None:
    folder = write(tmp_path / "set", "a.png", "sub/b.png", "sub/c.png")
    metadata(folder / f"metadata.{suffix}", ROWS)
    lines = ingest(folder, tmp_path / "inbox")
    found = [row for row in rows(tmp_path / "inbox") if isinstance(row, RawItem)]
    assert [(row.class_name, row.attributes) for row in found] == [
        ("cat", {"shelf": "007", "price": "3", "path": "a.png"}),
        ("dog", {"shelf": "008", "price": "4", "path": "sub/b.png"}),
        ("sub", {"path": "sub/c.png"}),
    ]
    assert f"metadata.{suffix} describes 2 images" in lines


def test_metadata_in_each_split_with_ids_and_times(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "train/a.png", "test/a.png")
    for split in ("train", "test"):
        described = [
            {"file_name": "a.png", "label": 3, "item_id": f"{split}-1", "time": "2024-05-01", "tags": ["x"]}
        ]
        metadata(folder / split / "metadata.jsonl", described)
    ingest(folder, tmp_path / "inbox")
    found = [row for row in rows(tmp_path / "inbox") if isinstance(row, RawItem)]
    assert [(row.class_name, row.item_id) for row in found] == [("3", "test-1"), ("3", "train-1")]
    assert {row.time for row in found} == {datetime(2024, 5, 1, tzinfo=UTC)}
    assert json.loads(found[0].attributes["tags"]) == ["x"]


def test_what_no_attribute_can_be_does_not_cost_its_image(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "cats/a.png")
    described = {
        "file_name": "a.png",
        "text": "x" * 20_000,
        "bad": "a\u0000b",
        "nan": float("nan"),
        "shelf": 7,
    }
    metadata(folder / "cats/metadata.jsonl", [described | {"time": "yesterday", "objects": {"box": [1, 2]}}])
    ingest(folder, tmp_path / "inbox")
    (row,) = (row for row in rows(tmp_path / "inbox") if isinstance(row, RawItem))
    assert row.class_name == "cats"
    assert {name: row.attributes.get(name) for name in ("shelf", "time", "text")} == {
        "shelf": "7", "time": "yesterday", "text": None,
    }  # fmt: skip
    assert json.loads(row.attributes["objects"]) == {"box": [1, 2]}


def test_a_delta_table_is_no_folder_of_tables(tmp_path: Path) -> None:
    table(tmp_path / "set/part-0.parquet", image=[picture()], label=[1])
    (tmp_path / "set/_delta_log").mkdir()
    with pytest.raises(ValueError, match=r"is a Delta table.*source.kind: delta"):
        ingest(tmp_path / "set", tmp_path / "inbox")


def test_a_stream_root_is_no_folder_of_tables(tmp_path: Path) -> None:
    """Its thumbnails have images and classes, and would become items."""
    new_root(str(tmp_path / "set")).release()
    table(tmp_path / "set/thumbnails/a.parquet", image=[picture()], item_id=["a"], class_name=["cat"])
    with pytest.raises(ValueError, match=r"is a stream root.*stream-odml backup"):
        ingest(tmp_path / "set", tmp_path / "inbox")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.csv", "path,label\na.png,cat\n"),
        ("metadata.csv", "\xff\xfe not text"),
        ("metadata.jsonl", "[1, 2]\n"),
        ("metadata.jsonl", "{\n"),
        ("metadata.csv", "file_name,label\n../../etc/passwd,cat\n"),
        ("metadata.parquet", "no parquet"),
        ("stats.parquet", "no parquet"),
        ("notes.feather", ""),
        ("old.tar", "no tar"),
    ],
)
def test_a_table_that_is_none_of_ours_is_passed_over_in_words(
    tmp_path: Path, name: str, content: str
) -> None:
    folder = write(tmp_path / "set", "cats/a.png", "dogs/b.png")
    (folder / name).write_text(content, encoding="latin-1")
    lines = ingest(folder, tmp_path / "inbox")
    assert classes(tmp_path / "inbox") == ["cats", "dogs"]
    assert any("passed over" in line and name in line for line in lines), lines


def test_a_foreign_table_says_what_it_has(tmp_path: Path) -> None:
    folder = write(tmp_path / "set", "cats/a.png")
    table(folder / "stats.parquet", width=[1, 2], height=[3, 4])
    lines = ingest(folder, tmp_path / "inbox")
    assert any("no column image or img or bytes; found ['width', 'height']" in line for line in lines), lines


def test_a_manifest_that_names_a_foreign_table_loses_one_row_not_the_shard(tmp_path: Path) -> None:
    folder = write(tmp_path / "inbox/set", "cats/a.png", "dogs/b.png")
    seal(folder)
    files = ShardManifest.from_bytes((folder / MANIFEST_NAME).read_bytes()).files
    foreign = table(folder / "cats/x.parquet", width=[1])
    files = (files[0], ManifestFile("cats/x.parquet", foreign.stat().st_size), files[1])
    (folder / MANIFEST_NAME).write_bytes(ShardManifest(files=files).to_bytes())
    assert classes(tmp_path / "inbox") == ["cats", "wrong_schema", "dogs"]


def test_hive_folders(tmp_path: Path) -> None:
    for kind in ("cats", "caf%C3%A9"):
        table(tmp_path / f"set/class={kind}/day=1/part-0.parquet", image=[picture(len(kind), "PNG")] * 2)
    table(tmp_path / "set/class=dogs/part-0.parquet", image=[picture(3, "PNG")], label=["its own"])
    table(tmp_path / "set/class=__HIVE_DEFAULT_PARTITION__/part-0.parquet", image=[picture(4, "PNG")])
    lines = ingest(tmp_path / "set", tmp_path / "inbox")
    assert sorted(classes(tmp_path / "inbox")) == ["café", "café", "cats", "cats", "dogs"]
    assert any("__HIVE_DEFAULT_PARTITION__" in line and "no column class_name" in line for line in lines), (
        lines
    )


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"img": [picture(1)], "label": [4]}, ["4"]),
        ({"img": [{"bytes": picture(1), "path": "x.png"}], "labels": ["cat"]}, ["cat"]),
        ({"image": [picture(1)], "labels": [2]}, ["2"]),
        ({"image": [picture(1), picture(2)], "label": [2.0, 3.0]}, ["2", "3"]),
        ({"image": [picture(1), picture(2)], "label": [2.0, None]}, ["2", "missing_label"]),
    ],
)
def test_columns_by_their_other_names(tmp_path: Path, columns: dict[str, Any], expected: list[str]) -> None:
    ingest(table(tmp_path / "set.parquet", **columns), tmp_path / "inbox")
    assert classes(tmp_path / "inbox") == expected


def test_float_labels_find_their_class_names(tmp_path: Path) -> None:
    note = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    made = pa.table({"image": [picture()] * 2, "label": [1.0, 0.0]})
    pq.write_table(made.replace_schema_metadata({"huggingface": json.dumps(note)}), tmp_path / "s.parquet")
    ingest(tmp_path / "s.parquet", tmp_path / "inbox")
    assert classes(tmp_path / "inbox") == ["dog", "cat"]


def test_whole_decimals_of_a_database_are_numbers(tmp_path: Path) -> None:
    wide, scaled = pa.decimal128(38, 0), pa.decimal128(10, 2)
    numbers = [Decimal(1), Decimal(0), None]
    made = {
        "image": [picture(n) for n in range(3)],
        "id": pa.array([Decimal(7), Decimal("8.00"), Decimal("8.50")], scaled),
    }
    ingest(table(tmp_path / "s.parquet", **made, label=pa.array(numbers, wide)), tmp_path / "inbox")
    found = [row for row in rows(tmp_path / "inbox") if isinstance(row, RawItem)]
    assert [(row.item_id, row.class_name) for row in found] == [("7", "1"), ("8", "0")]
    note = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    named = pa.table({**made, "label": pa.array(numbers, wide)})
    pq.write_table(named.replace_schema_metadata({"huggingface": json.dumps(note)}), tmp_path / "n.parquet")
    ingest(tmp_path / "n.parquet", tmp_path / "named")
    assert classes(tmp_path / "named")[:2] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("columns", "seen"),
    [
        (
            {"image": [{"bytes": None, "path": "a/1.png"}], "label": [1]},
            r"only a path, 'a/1\.png'.*expected its bytes",
        ),
        ({"image": ["a/1.png"], "label": [1]}, r"column image is string; it holds no bytes"),
        ({"image": [[1, 2, 3]], "label": [1]}, r"column image is list<.*it holds no bytes"),
        ({"image": [picture()], "label": [0.25]}, r"label.*0\.25|0\.25.*float"),
        ({"image": [picture()], "labels": [[1, 2]]}, r"column labels is list<.*expected text or a number"),
        (
            {"photo": [picture()], "label": [1]},
            r"no column image or img or bytes; found \['photo', 'label'\]",
        ),
        (
            {"image": [picture()], "kind": ["x"]},
            r"no column class_name or label or labels or class or category; found",
        ),
        ({"image": pa.array([None], pa.binary()), "label": [1]}, r"the image is null"),
        ({"image": [picture()], "label": [" "]}, r"blank"),
    ],
)
@pytest.mark.parametrize("door", ["ingest", "land_file", "folder"])
def test_what_cannot_be_read_is_refused_before_it_lands(
    tmp_path: Path, columns: dict[str, Any], seen: str, door: str
) -> None:
    made, inbox = table(tmp_path / "set/set.parquet", **columns), tmp_path / "inbox"
    land: dict[str, Callable[[], object]] = {
        "ingest": lambda: ingest(made, inbox),
        "land_file": lambda: land_file(inbox, made),
        "folder": lambda: ingest(made.parent, inbox),
    }
    with pytest.raises(ValueError, match=seen):
        land[door]()
    assert not inbox.exists()


def test_images_without_a_class_are_refused_before_they_land(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none of its 2 images lies in a class folder.*expected a folder"):
        ingest(write(tmp_path / "flat", "a.png", "b.png"), tmp_path / "inbox")
    assert not (tmp_path / "inbox").exists()


@pytest.mark.parametrize(
    "text",
    [
        "file_name;label\na.png;cat\nb.png;dog\n",
        "file_name\tlabel\na.png\tcat\nb.png\tdog\n",
        "\ufefffile_name, label\r\na.png, cat\r\n\r\nb.png, dog\r\n",
        '"file_name","label"\n"./a.png","cat"\n"b.png","dog"\n',
    ],
)
def test_tables_as_spreadsheets_write_them(tmp_path: Path, text: str) -> None:
    folder = write(tmp_path / "zoo", "a.png", "b.png")
    (folder / "metadata.csv").write_text(text, newline="")
    ingest(folder, tmp_path / "in")
    assert classes(tmp_path / "in") == ["cat", "dog"]


def test_file_names_as_other_systems_write_them(tmp_path: Path) -> None:
    """A Mac writes accents apart, Windows writes backslashes."""
    folder = write(tmp_path / "zoo", "x/e\u0301.png", "x/b.png")
    (folder / "metadata.csv").write_text("file_name,label\nx/é.png,cat\nx\\b.png,dog\n")
    ingest(folder, tmp_path / "in")
    assert sorted(classes(tmp_path / "in")) == ["cat", "dog"]


def test_a_table_in_another_encoding_is_passed_over_with_the_remedy(tmp_path: Path) -> None:
    folder = write(tmp_path / "zoo", "x/a.png")
    (folder / "metadata.csv").write_text("file_name,label\nx/a.png,\u00e9l\u00e9phant\n", encoding="latin-1")
    (line,) = [line for line in ingest(folder, tmp_path / "in") if "metadata.csv" in line]
    assert "byte 0xe9 at 24 is not UTF-8: save the file as UTF-8" in line


def test_two_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "zoo", "x/a.png")
    (folder / "metadata.csv").write_text("file_name,label,label\na.png,cat,dog\n")
    assert any("two columns of one name" in line for line in ingest(folder, tmp_path / "in"))


@pytest.mark.parametrize("above", ["", "zoo/", "data/zoo/"])
def test_a_split_anywhere_leads_to_one_class(tmp_path: Path, above: str) -> None:
    names = [f"{above}train/cats/a.png", f"{above}train/dogs/b.png", f"{above}test/cats/c.png"]
    loose = [f"{above}test/1.png", "sample.png"]
    lines = ingest(write(tmp_path / "f", *names, *loose), tmp_path / "in")
    assert any(line.startswith("2 images") and "without a class" in line for line in lines), lines
    assert sorted(classes(tmp_path / "in")) == ["cats", "cats", "dogs", "missing_label", "missing_label"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/n01/images/n01_0.jpg", "train/n02/images/n02_0.jpg", "val/images/val_0.jpg"], ["n01", "n02", ""]),
        (["images/001.Black/a.jpg", "images/002.Laysan/b.jpg"], ["001.Black", "002.Laysan"]),
        (["seg_pred/1.jpg", "seg_test/seg_test/sea/1.jpg", "seg_train/seg_train/ice/1.jpg"], ["", "sea", "ice"]),
        (["test_set/test_set/cats/1.jpg", "training_set/training_set/cats/2.jpg"], ["cats", "cats"]),
        (["Test/Apple/1.jpg", "Training/Apple/2.jpg", "test-multiple_fruits/x.jpg"], ["Apple", "Apple", ""]),
        (["data/train2017/cats/1.jpg", "data/val2017/dogs/2.jpg"], ["cats", "dogs"]),
        (["x/train/images/cats/1.jpg", "x/val/images/dogs/2.jpg"], ["cats", "dogs"]),
        (["bullet_train/1.jpg", "steam train/2.jpg"], ["bullet_train", "steam train"]),
        (["test strip/1.jpg", "test tube/2.jpg"], ["test strip", "test tube"]),
        (["test 1/1.jpg", "test 2/2.jpg"], ["test 1", "test 2"]),
        (["charts/1.jpg", "images/2.jpg"], ["charts", "images"]),
        (["cats/a.jpg", "cats/images/b.jpg"], ["cats", "cats/images"]),
    ],
)  # fmt: skip
def test_folders_that_name_no_class(tmp_path: Path, names: list[str], expected: list[str]) -> None:
    ingest(write(tmp_path / "set", *names), tmp_path / "inbox")
    assert [one.replace("missing_label", "") for one in classes(tmp_path / "inbox")] == expected


@pytest.mark.parametrize(
    "names",
    [
        ["train/1.jpg", "test/2.jpg"],
        ["train/cat.0.jpg"],
        ["train_images/1.jpg", "test_images/2.jpg"],
        ["images/1.jpg"],
        ["jpg/image_00001.jpg"],
        ["JPEGImages/1.jpg"],
        ["images/train/1.jpg", "images/val/2.jpg"],
        ["train/images/1.jpg", "valid/images/2.jpg"],
        ["train2017/1.jpg", "val2017/2.jpg"],
    ],
)
def test_images_that_only_lie_in_splits_have_no_class(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(
        ValueError, match=r"none of its . images.*or `metadata\.csv`.*`train`, `images` and the like"
    ):
        ingest(write(tmp_path / "set", *names), tmp_path / "inbox")
    assert not (tmp_path / "inbox").exists()


def test_classes_that_a_split_divides_are_pointed_out(tmp_path: Path) -> None:
    lines = ingest(write(tmp_path / "f", "train/a/1.png", "x/train/a/2.png", "test/a/3.png"), tmp_path / "in")
    assert any(line.startswith("test/a, train/a are different classes") for line in lines), lines
    assert not any(
        "different" in line for line in ingest(write(tmp_path / "g", "a/1.png", "b/1.png"), tmp_path / "in")
    )


TABLES = {
    "_delta_log/0.json": "a Delta table.*source.kind: delta",
    ".hoodie/hoodie.properties": "a Hudi table.*Parquet",
    "metadata/v1.metadata.json": "an Iceberg table.*source.kind: iceberg",
    "_versions/1.manifest": "a Lance table.*source.kind: lance",
}


@pytest.mark.parametrize("log", TABLES)
def test_a_table_of_several_files_does_not_land_as_a_folder(tmp_path: Path, log: str) -> None:
    """Its deleted rows would come back."""
    table(tmp_path / "set/products/data/0.parquet", image=[picture()], label=["deleted"])
    (tmp_path / "set/products" / log).parent.mkdir()
    (tmp_path / "set/products" / log).write_text("{}")
    with pytest.raises(ValueError, match=f"products is {TABLES[log]}"):
        ingest(tmp_path / "set/products", tmp_path / "inbox")
    write(tmp_path / "set", "cats/a.png")
    lines = ingest(tmp_path / "set", tmp_path / "inbox")
    assert any(line.startswith("products passed over: it is a") for line in lines), lines
    assert classes(tmp_path / "inbox") == ["cats"]
