"""Seam 40: an erasure beside every writer. What was read before a request and is committed while its round deletes, or
after that, brings nothing back; and a search made meanwhile neither fails nor claims what is not so."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake import DeltaTable

from stream_odml.cli import stream_root
from stream_odml.ingest.shard import ShardRef
from stream_odml.learn.discriminant import solve_head
from stream_odml.pipeline import erasure_proof
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.store import maintenance
from stream_odml.store.artifacts import HEAD, STUDENT, SUMS
from stream_odml.store.layout import REWRITTEN
from stream_odml.store.maintenance import MaintenancePolicy, MaintenanceReport
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums, learnt_rows
from stream_odml.store.table import Table
from stream_odml.store.tables import IngestBatch, quarantine_rows
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import Writer
from tests.store.exact_world import LIFT, SETTINGS, D, exact_root, fast_stage, land, new_trunk
from tests.store.world import DIM, Item, drift_pair, make_rows, new_root

# As a running stream erases: what is in no commit is too young to be judged.
ERASE = MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(hours=1))
POINTS = [
    "before",
    "after_files",
    "after_purge",
    "after_artifacts",
    "after_compaction",
    "after_vacuum",
    "the end",
]
ITEMS = [Item("x", "cat"), Item("y", "dog")]
Commit = Callable[[], object]


def put_pictures(root: Path, shard_id: str, items: list[Item]) -> None:
    """As an indexer leaves them before it hands its rows over."""
    names = [item.item_id for item in items], [item.class_name for item in items]
    table = pa.table({"item_id": names[0], "class_name": names[1], "image": [b"pixels"] * len(items)})
    for folder in REWRITTEN:
        (root / folder).mkdir(exist_ok=True)
        pq.write_table(table, root / folder / f"{shard_id}.parquet")


def ingest(writer: Writer, shard_id: str, items: list[Item]) -> None:
    land(writer, shard_id, items, np.random.default_rng(0).random((len(items), DIM)))


def indexed(writer: Writer) -> Commit:
    """A shard that an indexer has read: two images, and two files of the class folders that are none."""
    root = Path(writer.store.uri)
    writer.record_landed([ShardRef("b", "b", "/inbox/b", "folder", 1, 0, "b")])
    rows = make_rows("b", ITEMS, np.ones((2, DIM)), writer.tree.head)
    refused = [
        ("b", 2 + n, "corrupt_image", f"b/{of}/0.png: cannot be decoded", b"")
        for n, of in enumerate(("cat", "dog"))
    ]
    put_pictures(root, "b", ITEMS)
    return lambda: writer.commit_ingest(IngestBatch(["b"], rows, quarantine_rows(refused)))


def learnt(writer: Writer) -> Commit:
    """A stage that has embedded its task anew, but for an image of each class, which it could not read."""
    items = [*ITEMS, Item("lost cat", "cat"), Item("lost dog", "dog")]
    ingest(writer, "b", items)
    put_pictures(Path(writer.store.uri), "b", items)
    writer.close_task("task-0001", ["b"], "test")
    version_id = writer.begin_attempt("task-0001")
    maps = drift_pair(0)
    data = {
        STUDENT: b"student",
        "forward.safetensors": maps[0].to_bytes(),
        "backward.safetensors": maps[1].to_bytes(),
    }
    refs = {name: writer.put_artifact(version_id, name, part) for name, part in data.items()}
    rows = make_rows("b", items, np.ones((4, DIM)), version_id).slice(0, 2)
    refused = [
        ("b", row, "corrupt_image", "left out of task-0001: cut short", b"cat"[: 3 * (row == 2)])
        for row in (2, 3)
    ]
    head = writer.tree.head
    return lambda: writer.commit_stage(
        version_id, head, "task-0001", refs, rows, quarantine=quarantine_rows(refused)
    )


@pytest.mark.parametrize("under_way", [indexed, learnt])
@pytest.mark.parametrize("point", POINTS)
def test_a_commit_of_what_was_read_before_brings_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, under_way: Callable[[Writer], Commit], point: str
) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", [Item("a0", "cat"), Item("a1", "dog")])
    commit = under_way(writer)
    writer.forget("class", "cat", 2)
    monkeypatch.setattr(
        maintenance, "crash_point", lambda at: commit() if at == f"maintain.{point}" else None
    )
    writer.maintain(ERASE)
    if point == "the end":
        commit()
    assert verify_forgotten(str(tmp_path), "class", "cat").findings == []
    dogs = {"a1", "y"} | ({"lost dog"} if under_way is learnt else set())
    stored = [pq.read_table(path) for path in (tmp_path / "gallery").glob("*.parquet")]
    assert {item for table in stored for item in table["item_id"].to_pylist()} == dogs
    for folder in REWRITTEN:
        assert set(pq.read_table(tmp_path / folder / "b.parquet")["item_id"].to_pylist()) == dogs - {"a1"}
    refused = writer.store.quarantine_rows()
    assert refused["row"].to_pylist() == [3]
    assert not any(b"cat" in path.read_bytes() for path in (tmp_path / "quarantine").glob("*.parquet"))
    assert set(writer.store.gallery_rows()["item_id"].to_pylist()) == dogs
    writer.release()


@pytest.mark.parametrize("point", POINTS)
def test_items_embedded_anew_meanwhile_bring_nothing_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    writer = exact_root(str(tmp_path))
    h_nD = np.random.default_rng(0).random((4, D))
    items = [Item("x", "cat"), Item("y", "dog"), Item("z", "cow"), Item("w", "cow")]
    land(writer, "b", items, h_nD)
    new_trunk(writer, "task-0001", "b", items, h_nD, seed=1)
    renewed = writer.begin_later_attempt("renew", ["task-0001"], ["b"])
    rows = make_rows("b", items, h_nD + 1, renewed, codes=writer.store.row_codes)
    writer.forget("class", "cat", 1)
    forget_in_sums(writer)

    def commit() -> None:
        store, parent = writer.store, writer.tree.head
        sums = learnt_rows(store, parent).sums(LIFT)
        data = {HEAD: solve_head(sums, SETTINGS).to_bytes(), SUMS: sums.to_bytes()}
        refs = {name: writer.put_artifact(renewed, name, part) for name, part in data.items()}
        refs[STUDENT] = store.tree.get(parent).artifacts[STUDENT]
        writer.commit_stage(renewed, parent, "task-0001", refs, rows, {SUMS_SEQ: store.ledger.seq})

    monkeypatch.setattr(
        maintenance, "crash_point", lambda at: commit() if at == f"maintain.{point}" else None
    )
    writer.maintain(ERASE)
    if point == "the end":
        commit()
    assert writer.tree.head == renewed
    stored = [pq.read_table(path) for path in (tmp_path / "gallery").glob("*.parquet")]
    assert {item for table in stored for item in table["item_id"].to_pylist()} == {"y", "z", "w"}
    writer.release()


@pytest.mark.parametrize("under_way", [indexed, learnt])
@pytest.mark.parametrize("table", ["gallery", "quarantine"])
def test_an_append_that_another_commit_overtook_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, under_way: Callable[[Writer], Commit], table: str
) -> None:
    """Maintenance commits beside it; the rows are written again, and an erasure would not find those of before."""
    writer = new_root(str(tmp_path))
    commit = under_way(writer)
    append = Table.append
    overtaken: list[str] = []

    def overtake(self: Table, *args: Any) -> None:
        if self.name == table and len(overtaken) < 2:
            overtaken.append(self.name)
            properties = {"delta.logRetentionDuration": f"interval {len(overtaken)} days"}
            DeltaTable(f"{tmp_path}/{table}").alter.set_table_properties(properties)
        append(self, *args)

    monkeypatch.setattr(Table, "append", overtake)
    commit()
    assert len(overtaken) == 2
    for name, of in writer.store.tables.items():
        of.refresh()
        assert {path.name for path in (tmp_path / name).glob("*.parquet")} == set(of.present), name
    assert len(writer.store.quarantine_rows()) == 2
    writer.forget("class", "cat", 2)
    writer.maintain(ERASE)
    assert verify_forgotten(str(tmp_path), "class", "cat").findings == []
    writer.release()


def test_a_search_while_sums_are_corrected_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files of earlier sums go at once: the search had begun with them, and called the root damaged."""
    writer = exact_root(str(tmp_path))
    items = [Item("x", "cat"), Item("y", "dog"), Item("z", "cow")]
    h_nD = np.random.default_rng(0).random((3, D))
    land(writer, "b", items, h_nD)
    new_trunk(writer, "task-0001", "b", items, h_nD, seed=1)
    land(writer, "c", [Item("u", "cat"), Item("v", "dog")], h_nD[:2])
    fast_stage(writer, "task-0002", ["c"])
    writer.forget("class", "cat", 2)
    in_statistics = erasure_proof._in_statistics

    def correct(*args: Any) -> list[str]:
        forget_in_sums(writer)
        return list(in_statistics(*args))

    monkeypatch.setattr(erasure_proof, "_in_statistics", correct)
    proof = verify_forgotten(str(tmp_path), "class", "cat")
    assert proof.findings  # the rows are there
    assert {finding.partition("/")[0] for finding in proof.findings} == {"gallery"}
    lines, gone = stream_root.verify_forgotten(str(tmp_path), "class", "cat", inbox=False)
    assert not gone
    assert any("a running stream deletes within a minute" in line for line in lines)
    monkeypatch.setattr(time, "time", partial(float, time.time() + 3600))
    lines, gone = stream_root.verify_forgotten(str(tmp_path), "class", "cat", inbox=False)
    assert not gone
    assert not any("within a minute" in line for line in lines)
    writer.release()


def test_a_file_that_is_replaced_while_it_is_searched_hides_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = new_root(str(tmp_path))
    for shard in "abc":
        ingest(writer, shard, [Item(f"{shard}0", "cat"), Item(f"{shard}1", "dog")])
    writer.forget("class", "cat", 3)
    covered = writer.ledger.tombstones[-1].seq - 1
    in_file = erasure_proof._in_file
    merged: list[MaintenanceReport] = []

    def merge(store: Store, path: str, *args: Any) -> Any:
        if path.startswith("gallery/") and not merged:
            merged.append(writer.maintain(ERASE, covered))
        return list(in_file(store, path, *args))

    monkeypatch.setattr(erasure_proof, "_in_file", merge)
    (finding,) = verify_forgotten(str(tmp_path), "class", "cat").findings
    assert "gallery" in merged[0].tables_compacted
    assert finding.endswith(": 3 rows")
    writer.release()
