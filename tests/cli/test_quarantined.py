"""A refused row goes out whole, is fixed, lands again, and is an item."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.cli.quarantined import _table, export_rows
from stream_odml.ingest.landing import land_file
from stream_odml.ingest.rawrow import RawRow
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import build_embedder
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.cluster.small_root import DIM, claim
from tests.ingest.pictures import picture


@pytest.mark.filterwarnings("default")
def test_fixed_rows_land_as_a_new_shard(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    good = picture(1, "PNG")
    table = {
        "image": pa.array([good, b"not an image", good, good], pa.binary()),
        "class_name": ["oak", "oak", None, "elm"],
        "id": ["a", "b", "c", "a"],
        "attributes": pa.array([None, '{"lot": "7"}', None, None], pa.string()),
    }
    pq.write_table(pa.table(table), inbox / "first.parquet")
    writer = claim(tmp_path / "root")
    _index_all(writer, inbox)
    assert len(writer.store.gallery_rows()) == 1
    fixed = tmp_path / "fixed.parquet"
    written, unread = export_rows(Store.open(str(tmp_path / "root")), fixed)
    assert (written, unread) == (3, [])
    rows = pq.read_table(fixed).to_pylist()
    assert [(r["row"], r["reason"]) for r in rows] == [
        (1, "not_an_image"),
        (2, "missing_label"),
        (3, "duplicate_id"),
    ]
    assert [r["item_id"] for r in rows] == ["b", "c", None]
    assert rows[0]["attributes"] == '{"lot": "7"}'
    assert rows[0]["image"] == b"not an image"
    rows[0]["image"], rows[1]["class_name"] = good, "fir"
    pq.write_table(pa.Table.from_pylist(rows), fixed)
    land_file(inbox, fixed)
    _index_all(writer, inbox)
    found = {(r["class_name"], r["item_id"].split("-")[0]) for r in writer.store.gallery_rows().to_pylist()}
    assert found == {("oak", "a"), ("oak", "b"), ("fir", "c"), ("elm", "fixed.parquet")}
    writer.release()


def refused(folder: Path, *rows: RawRow, bad: str = "bad_label") -> pa.Table:
    """What is exported where these rows of a shard were refused."""
    rows = tuple(replace(row, row=at) for at, row in enumerate(rows))
    about = {"reason": bad, "detail": "", "shard_id": "s"}
    table = _table([(row, {**about, "row": row.row}) for row in rows])
    path = folder / "bad.parquet"
    pq.write_table(table, path)
    return pq.read_table(path)


def test_names_that_are_no_text_are_exported_escaped(tmp_path: Path) -> None:
    """One such name must not keep all other rows from going out."""
    odd = RawRow(0, b"image", "na\udcefve", path="c1/na\udcefve.png", attributes='{"a": "\udcef"}')
    label = RawRow(0, b"image", b"na\xefve", path="plain.png")
    exported = refused(tmp_path, odd, label).to_pylist()
    assert exported[0]["path"] == "c1/na\\udcefve.png"
    assert exported[0]["class_name"] == "na\\udcefve"
    assert exported[1]["class_name"] == "na\\xefve"


def test_what_no_row_has_is_no_column_of_the_file(tmp_path: Path) -> None:
    """Landing takes the first of image and vector that is there, and a table with neither for labels."""
    vector = RawRow(0, vector=np.array([1, 2], np.float32).tobytes(), label="oak")
    lost, label = RawRow(0, label="oak"), RawRow(0, label="oak", item_id="a", is_label=True)
    exported = refused(tmp_path, vector, lost)
    assert exported["vector"].to_pylist() == [[1, 2], None]
    assert "image" not in exported.column_names
    assert {"image", "vector"} & set(refused(tmp_path, label).column_names) == set()
    assert {"image", "vector"} & set(refused(tmp_path, lost).column_names) == {"image"}


def test_a_label_keeps_the_id_that_it_is_of(tmp_path: Path) -> None:
    """Also where two labels name one item; an image or a vector gets another id where it lands again."""
    label, image = RawRow(0, label="oak", item_id="a", is_label=True), RawRow(0, b"image", "oak", item_id="a")
    for row, item_id in ((label, "a"), (image, None)):
        assert refused(tmp_path, row, bad="duplicate_id")["item_id"].to_pylist() == [item_id]


def _index_all(writer: Writer, inbox: Path) -> None:
    new = [ref for ref in DirectorySource(inbox).poll(set()) if ref.shard_id not in writer.ledger.shards]
    writer.record_landed(new)
    model = build_embedder(EmbedderSpec("conv4", dim=DIM, image_size=16), 0)
    for ref in new:
        options = IndexOptions(1 << 20, True, 0.0)
        writer.commit_ingest(index_shard(ref, model, writer.tree.head, writer.store.files, options))
