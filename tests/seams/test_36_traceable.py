"""Seam 36: what is found, refused or taken out names the file that it came from, as its producer knows it."""

from __future__ import annotations

import io
import json
import tarfile
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.cli.quarantined import export_rows
from stream_odml.ingest.fields import MAX_ATTRIBUTES_CHARS, with_path
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.search.columns import Columns
from stream_odml.search.filters import Filters
from tests.ingest.helpers import land_folder, only, read
from tests.service.tiny_stream import TinyStream, picture


def tar_of(path: Path, **members: bytes) -> None:
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            member = tarfile.TarInfo(name.replace("__", "/").replace("_", "."))
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A folder with an image, a table and a tar, one bad row in each."""
    folder = tmp_path / "mixed"
    (folder / "oak").mkdir(parents=True)
    (folder / "oak" / "1.png").write_bytes(picture(1))
    (folder / "oak" / "2.png").write_bytes(b"no image")
    rows = {"image": [picture(2), picture(3)], "class_name": ["elm", ""]}
    pq.write_table(pa.table(rows), folder / "table.parquet")
    tar_of(folder / "more.tar", ash__1_png=picture(4), ash__1_cls=b"ash", ash__2_png=picture(5))
    return folder


def test_every_row_of_a_folder_names_its_file(mixed: Path, tmp_path: Path) -> None:
    land_folder(tmp_path / "inbox", mixed)
    items, problems = read(only(tmp_path / "inbox"))
    assert sorted(item.attributes["path"] for item in items) == [
        "more.tar/ash/1.png", "oak/1.png", "oak/2.png", "table.parquet#0"
    ]  # fmt: skip
    assert sorted(problem.detail.partition(": ")[0] for problem in problems) == [
        "more.tar/ash/2.png", "table.parquet#1"
    ]  # fmt: skip


def test_found_refused_and_exported_rows_name_their_file(mixed: Path, tmp_path: Path) -> None:
    stream = TinyStream(tmp_path)
    land_folder(stream.inbox, mixed)
    stream.ingest()
    refused = {row["detail"].partition(": ")[0] for row in stream.writer.store.quarantine_rows().to_pylist()}
    assert refused == {"more.tar/ash/2.png", "oak/2.png", "table.parquet#1"}
    export_rows(stream.writer.store, tmp_path / "bad.parquet")
    assert set(pq.read_table(tmp_path / "bad.parquet")["path"].to_pylist()) == refused
    rows = stream.writer.store.gallery_rows()
    assert {text for text in rows["attributes"].to_pylist() if "oak/1.png" in text} == {
        '{"path": "oak/1.png"}'
    }
    stream.close()


def test_a_table_alone_is_traced_by_shard_and_row_and_keeps_its_attributes_small(tmp_path: Path) -> None:
    land_items(tmp_path / "inbox", "a", [NewItem(picture(1), "oak"), NewItem(picture(2), "elm")])
    items, _ = read(only(tmp_path / "inbox"))
    assert [(item.row, item.attributes) for item in items] == [(0, {}), (1, {})]


def test_what_a_producer_gave_stays_and_no_path_refuses_a_row() -> None:
    assert with_path({"path": "mine"}, "theirs.png") == {"path": "mine"}
    assert with_path({}, "a\u202egnp.exe") == {"path": "a\\u202egnp.exe"}
    assert with_path({"note": "x" * MAX_ATTRIBUTES_CHARS}, "a.png").keys() == {"note"}


def test_a_filter_finds_what_a_loop_finds_where_attributes_are_all_different() -> None:
    random = np.random.default_rng(0)
    texts = []
    for i in range(300):
        hue = random.choice(["red", 'r"ed', "r\\ed", "blue"])
        texts.append({"path": f"{hue}/{i}.png", "hue": str(hue), "red": "hue"})
    rows = pa.table(
        {
            "item_id": [str(i) for i in range(300)],
            "attributes": [json.dumps(text, sort_keys=True) for text in texts],
            "time": pa.array([None] * 300, pa.timestamp("us", "UTC")),
            "held_out": [False] * 300,
            "row": pa.array(range(300), pa.int32()),
            **{name: ["x"] * 300 for name in ("class_name", "shard_id", "version")},
        }
    )
    columns = Columns().grown(rows.slice(0, 100)).grown(rows.slice(100))
    for wanted in (
        {"hue": "red"},
        {"hue": 'r"ed'},
        {"hue": "r\\ed", "red": "hue"},
        {"hue": "hue"},
        {"red": "red"},
    ):
        expected = [wanted.items() <= text.items() for text in texts]
        assert Filters(attributes=wanted).mask(columns).tolist() == expected
    assert columns.array("row").tolist() == list(range(300))


def test_an_answer_over_http_says_shard_row_and_path(tmp_path: Path) -> None:
    from stream_odml.search.hits import Hit
    from stream_odml.service.replies import hit_json

    hit = Hit("a", "oak", 0.5, "v", {"path": "oak/1.png"}, datetime(2026, 1, 1), "s-1", 7, 3)
    said = hit_json(hit)
    assert (said["shard"], said["row"], said["attributes"]["path"]) == ("s-1", 3, "oak/1.png")
