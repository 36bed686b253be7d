"""Seam 02: a table reads the same whichever Delta operation, and whichever Delta writer, rewrote its files.

DELETE, UPDATE and MERGE write `string_view`, other writers large strings, dictionaries, wider numbers or partitions.
After each of them every reader and the writer must find the same rows, and go on.
"""

import json
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable, TableFeatures, write_deltalake

from stream_odml.ingest.shard import ShardRef
from stream_odml.pipeline.sampling import rows_of_classes
from stream_odml.pipeline.stage_rows import in_parts, write_rows
from stream_odml.pipeline.stages import StageRows
from stream_odml.pipeline.task_cache import task_rows
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.backup import back_up
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.select import select_rows
from stream_odml.store.store import Store
from stream_odml.store.tables import FORMS, SCHEMAS, Form, quarantine_rows
from stream_odml.store.writer import IngestBatch, Writer
from tests.store.world import DIM, Item, Shard, commit_stage, ingest, make_rows, new_root

NOW = MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(0))
ITEMS = [Item("é/1", "rock"), Item("b", "o'clock"), Item("c", "rock")]
Rewrite = Callable[[DeltaTable], object]


def text_column(table: DeltaTable) -> str:
    """A text column that identifies rows."""
    names = [f.name for f in table.schema().fields]
    return next(n for n in ("item_id", "version_id", "subject", "detail") if n in names)


def typed(text: pa.DataType, **others: pa.DataType) -> Rewrite:
    """Overwrite with text columns of another type, as another library's frames have them."""

    def rewrite(table: DeltaTable) -> None:
        rows = table.to_pyarrow_table()
        kinds = {
            f.name: text if pa.types.is_string(f.type) else others.get(f.name, f.type) for f in rows.schema
        }
        rows = rows.cast(pa.schema([pa.field(name, kind) for name, kind in kinds.items()]))
        write_deltalake(table, rows, mode="overwrite", schema_mode="overwrite")

    return rewrite


def plant(path: str, text: pa.DataType, **others: pa.DataType) -> None:
    """Replace a data file by one of the same rows with other Arrow types, as writers without Delta's casts make it."""
    rows = pq.read_table(path, partitioning=None)
    kinds = {f.name: text if pa.types.is_string(f.type) else others.get(f.name, f.type) for f in rows.schema}
    pq.write_table(rows.cast(pa.schema(list(kinds.items()))), path, row_group_size=2)


def planted(text: pa.DataType, **others: pa.DataType) -> Rewrite:
    """Replace all data files of a table in one commit that Delta's own casts have no part in."""

    def rewrite(table: DeltaTable) -> None:
        actions: list[dict[str, object]] = []
        folder = Path(table.table_uri.removeprefix("file://"))
        for number, old in enumerate(Path(uri).name for uri in table.file_uris()):
            new = f"planted-{number:04d}.parquet"
            shutil.copy(folder / old, folder / new)
            plant(str(folder / new), text, **others)
            size = (folder / new).stat().st_size
            actions.append({"remove": {"path": old, "deletionTimestamp": 1, "dataChange": True}})
            added = {
                "path": new,
                "partitionValues": {},
                "size": size,
                "modificationTime": number,
                "dataChange": True,
            }
            actions.append({"add": added})
        commit = folder / "_delta_log" / f"{table.version() + 1:020d}.json"
        commit.write_text("\n".join(map(json.dumps, actions)))

    return rewrite


def delete(table: DeltaTable) -> None:
    # One row that does not count goes: a deletion that touches no row rewrites no file.
    rows = table.to_pyarrow_table().slice(0, 1)
    column = text_column(table)
    marked = rows.set_column(rows.schema.get_field_index(column), column, pa.array(["<gone>"], pa.string()))
    whole = pa.concat_tables([table.to_pyarrow_table(), marked])
    write_deltalake(table, whole, mode="overwrite")
    assert DeltaTable(table.table_uri).delete(f"{column} = '<gone>'")["num_deleted_rows"] == 1


def update(table: DeltaTable) -> None:
    column = text_column(table)
    table.update({column: column}, predicate="true")


def merge(table: DeltaTable) -> None:
    rows = table.to_pyarrow_table()
    source = rows.slice(0, 1).append_column("nobody", pa.nulls(1, pa.string()))
    last = rows.schema.names[-1]
    matched = table.merge(source, f"t.{last} = s.nobody", source_alias="s", target_alias="t")
    matched.when_not_matched_by_source_update({last: f"t.{last}"}).execute()


def partitioned(table: DeltaTable) -> None:
    column = {"gallery": "class_name", "quarantine": "reason"}.get(
        table.table_uri.rstrip("/").rpartition("/")[2], "kind"
    )
    rows = table.to_pyarrow_table()
    write_deltalake(table, rows, mode="overwrite", schema_mode="overwrite", partition_by=[column])


REWRITES: dict[str, Rewrite] = {
    "delete": delete,
    "update": update,
    "merge": merge,
    "optimize": lambda table: table.optimize.compact(),
    "z-order": lambda table: table.optimize.z_order([text_column(table)]),
    "vacuum": lambda table: table.vacuum(0, dry_run=False, enforce_retention_duration=False, full=True),
    "large_string": typed(
        pa.large_string(), vector=pa.large_list(pa.float32()), codes=pa.large_binary(), scale=pa.float64()
    ),
    "string_view": typed(pa.string_view(), first_bytes=pa.binary_view(), codes=pa.binary_view()),
    "partitioned": partitioned,
    "planted views": planted(pa.string_view(), first_bytes=pa.binary_view(), codes=pa.binary_view()),
    "planted dictionaries": planted(
        pa.dictionary(pa.int16(), pa.large_string()), row=pa.int64(), vector=pa.list_(pa.float64())
    ),
    "planted widths": planted(
        pa.large_string(),
        row=pa.uint32(),
        seq=pa.int32(),
        time=pa.timestamp("ns", "UTC"),
        vector=pa.list_(pa.float32(), DIM),
        first_bytes=pa.large_binary(),
        codes=pa.binary(DIM),
        scale=pa.float64(),
    ),
}


OTHER_COLUMNS = ("delete", "large_string", "planted dictionaries", "planted widths")
"""Rewrites that touch the vectors of embedding form, and one of Delta's own."""


def seeded(root: Path, form: Form = "embedding") -> Writer:
    """A root with everything in it: two versions, waiting shards, quarantined rows, a tombstone, held-out items."""
    writer = new_root(str(root), form=form)
    ingest(writer, "s1", ITEMS, held_out=[True, False, False])
    bad = quarantine_rows([("s2", 7, "bad_image", "x", b"\xff")])
    writer.record_landed([Shard("s2")])
    items, codes = [Item("d", "tree"), Item("c", "tree")], writer.store.row_codes
    rows = make_rows("s2", items, np.eye(2, DIM) + 1, writer.tree.head, codes=codes)
    writer.commit_ingest(IngestBatch(["s2"], rows, bad))
    writer.close_task("task-0001", ["s1"], "test")
    commit_stage(writer, "task-0001", None, seed=1)
    return writer


def seen(store: Store) -> dict[str, Any]:
    """Everything that the package's readers say of a root, in an order that no file layout changes."""
    snapshot = GallerySnapshot.load(store)
    rows = snapshot.rows()
    order = np.argsort([snapshot.item(int(row)).item_id for row in rows])
    shards = [s for s in store.ledger.shards.values() if s.state in ("indexed", "assigned")]
    refs = [ShardRef(s.shard_id, s.name, s.uri, "parquet", 1, 0, s.name) for s in shards]
    learnt = task_rows(store, refs, store.tree.head)
    held = rows_of_classes(store, store.tree.head, ["s1"], pc.field("held_out"), 10)
    one = pc.field("shard_id").isin(["s1"]) & (pc.field("row") >= 1)
    found = [row for _, part in store.scan(["item_id", "row"], one) for row in part.to_pylist()]
    return {
        "items": [
            (snapshot.item(int(row)).item_id, snapshot.item(int(row)).class_name) for row in rows[order]
        ],
        "vectors": snapshot.vectors(rows[order]).round(5).tolist(),
        "learnt": learnt["item_id"].to_pylist(),
        "held out": sorted(held["item_id"].to_pylist()),
        "filtered": sorted((row["item_id"], row["row"]) for row in found),
        "stored": sorted(
            zip(*(store.gallery_rows()[c].to_pylist() for c in ("item_id", "txn", "row")), strict=True)
        ),
        "quarantine": [
            (q["shard_id"], q["row"], q["first_bytes"]) for q in store.quarantine_rows().to_pylist()
        ],
        "shards": [(s.shard_id, s.state, s.rows, s.landed_at) for s in store.ledger.shards.values()],
        "versions": [(v.version_id, v.parent, v.time) for v in store.tree.versions.values()],
        "head": store.tree.head,
        "nearest": [
            hit.item_id for hit in snapshot.search(np.eye(1, DIM, dtype=np.float32), store.tree.head, 2)[0]
        ],
    }


# Each in exact form, as roots are made today; in the other form, quickly, those in which its columns differ.
FORMS_OF_REWRITES = [
    pytest.param(
        how, form, marks=[pytest.mark.slow] if form == "embedding" and how not in OTHER_COLUMNS else []
    )
    for how in REWRITES
    for form in FORMS
]


@pytest.mark.parametrize(("how", "form"), FORMS_OF_REWRITES)
def test_a_rewritten_root_reads_the_same_and_goes_on(how: str, form: Form, tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = seeded(root, form)
    follower = Store.open(str(root))
    before = seen(follower)
    assert before["items"]
    assert before["filtered"] == [("b", 1), ("c", 2)]
    for name in SCHEMAS:
        REWRITES[how](DeltaTable(str(root / name)))
    follower.refresh()
    assert seen(follower) == before
    assert seen(Store.open(str(root))) == before
    assert back_up(str(root), str(tmp_path / "copy")).head == before["head"]
    assert seen(Store.open(str(tmp_path / "copy"))) == before

    ingest(writer, "s3", [Item("late", "rock")], seed=5)
    writer.forget("class", "o'clock")
    selection = select_rows(writer.store.metadata(), writer.ledger, writer.tree, writer.tree.head)
    doomed = len(selection.replaced) + len(selection.forgotten)
    assert writer.maintain(NOW).rows_purged == doomed > 0
    after = seen(writer.store)
    assert [item for item, _ in after["items"]] == ["c", "d", "late", "é/1"]
    follower.refresh()
    assert seen(follower) == after == seen(Store.open(str(root)))
    files = [
        pq.read_table(path, partitioning=None)
        for path in (root / "gallery").rglob("*.parquet")
        if path.parent.name != "_delta_log"
    ]
    assert all(
        "o'clock" not in file["class_name"].cast(pa.string()).to_pylist()
        for file in files
        if "class_name" in file.column_names
    )
    assert not list((root / "gallery").glob("class_name=o*/*.parquet"))
    assert writer.maintain(NOW).rows_purged == 0
    writer.close_task("task-0002", ["s2", "s3"], "test")
    commit_stage(writer, "task-0002", None, seed=2)
    writer.release()
    again = Writer.claim(str(root), "next")
    assert len(GallerySnapshot.load(again.store)) == 4
    again.release()


@pytest.mark.parametrize(
    "text", [pa.string_view(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())]
)
def test_a_stage_takes_rows_of_any_text_type(text: pa.DataType, tmp_path: Path) -> None:
    rows, path = make_rows("s1", ITEMS, np.ones((3, DIM)), "v0"), tmp_path / "rows.parquet"
    write_rows(path, rows, in_parts(np.arange(3), np.full((3, DIM), 2, np.float32)), "v1")
    plant(str(path), text)
    parts = list(StageRows([path]))
    assert all(part.schema.equals(rows.schema) for part in parts)
    assert [name for part in parts for name in part["item_id"].to_pylist()] == [
        item.item_id for item in ITEMS
    ]


def test_a_table_with_deletion_vectors_is_refused_in_words(tmp_path: Path) -> None:
    seeded(tmp_path).release()
    table = DeltaTable(str(tmp_path / "gallery"))
    table.alter.add_feature(TableFeatures.DeletionVectors, allow_protocol_versions_increase=True)
    with pytest.raises(NotAStreamRoot, match=r"deletionVectors.*rewrite the table"):
        Store.open(str(tmp_path))
