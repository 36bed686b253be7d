"""Every operation can be repeated, and refuses what would break an invariant."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from stream_odml.store.artifacts import BACKWARD, FORWARD, STUDENT
from stream_odml.store.errors import ArtifactCorrupt, StaleParent, UnknownSubject, UnknownVersion
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows
from stream_odml.store.writer import IngestBatch, Writer
from tests.store.world import DIM, Item, Shard, commit_stage, ingest, make_rows, new_root

CATS = [Item("1", "cat"), Item("2", "cat"), Item("3", "dog")]


def sizes(writer: Writer) -> tuple[int, int]:
    writer.store.refresh()
    return writer.ledger.seq, sum(len(b) for b in writer.store.blocks.values())


def test_repeating_an_operation_changes_nothing(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    vectors = ingest(writer, "a", CATS)
    batch = IngestBatch(["a"], make_rows("a", CATS, vectors, writer.tree.head))
    writer.close_task("task-0001", ["a"], "test")
    version = commit_stage(writer, "task-0001", None, 1)
    writer.forget("class", "dog")
    before = sizes(writer)
    assert writer.record_landed([Shard("a")]) == []
    assert writer.commit_ingest(batch) == writer.ledger.shards["a"].txn
    writer.close_task("task-0001", ["a"], "test")
    refs = writer.tree.get(version).artifacts
    writer.commit_stage(version, writer.tree.root or "", "task-0001", refs, batch.rows)
    writer.move_head(version, "again")
    writer.forget("class", "dog")
    assert writer.commit_root({STUDENT: b"another"}) == writer.tree.root
    assert sizes(writer) == before
    writer.release()


def test_a_shard_is_in_exactly_one_transaction(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    writer.record_landed([Shard("a"), Shard("b")])
    head, raw = writer.tree.head, np.ones((3, DIM))
    a, b = make_rows("a", CATS, raw, head), make_rows("b", CATS, raw, head)

    first = writer.commit_ingest(IngestBatch(["a"], a))
    second = writer.commit_ingest(
        IngestBatch(["a", "b"], pa.concat_tables([a, b]), counts={"b": {"seconds": 1.5}})
    )
    rows = writer.store.gallery_rows()
    txns = dict(zip(rows["shard_id"].to_pylist(), rows["txn"].to_pylist(), strict=True))
    assert len(rows) == 6
    assert txns == {"a": first, "b": second}
    assert second != first
    assert writer.ledger.shards["b"].classes == {"cat": 2, "dog": 1}
    assert writer.ledger.shards["b"].counts["seconds"] == 1.5
    writer.release()


def test_attempts_are_reused_after_a_restart_and_replaced_after_a_refusal(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    ingest(writer, "a", CATS)
    writer.close_task("task-0001", ["a"], "test")
    first = writer.begin_attempt("task-0001")
    writer.release()
    writer = Writer.claim(str(tmp_path), "again")
    assert writer.begin_attempt("task-0001") == first
    writer.refuse(first, "task-0001", "recall fell", {"recall": 0.1})
    writer.refuse(first, "task-0001", "recall fell")
    second = writer.begin_attempt("task-0001")
    assert second != first
    assert second.startswith("v0001-")
    assert [(r.version_id, r.metrics) for r in writer.tree.refusals] == [(first, {"recall": 0.1})]
    refs = {n: writer.put_artifact(first, n, b"x") for n in (STUDENT, FORWARD, BACKWARD)}
    with pytest.raises(ValueError, match="not the current attempt"):
        writer.commit_stage(
            first, writer.tree.head, "task-0001", refs, writer.store.gallery_rows().slice(0, 0)
        )
    writer.release()


def test_rollback_makes_tasks_due_again_or_skips_them(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    root = writer.tree.head
    for number, shard in enumerate("abc", start=1):
        ingest(writer, shard, [Item(shard, "c")], seed=number)
        writer.close_task(f"task-000{number}", [shard], "test")
        commit_stage(writer, f"task-000{number}", None, number)
    latest = writer.tree.head
    writer.move_head(writer.tree.lineage(latest)[1], "rollback")
    due = writer.store.next_task()
    assert due is not None
    assert due.task_id == "task-0002"
    again = writer.begin_attempt("task-0002")
    assert again not in writer.tree.versions
    writer.move_head(latest, "forward")
    assert writer.store.next_task() is None
    writer.move_head(root, "give up", skip_abandoned=True)
    assert writer.store.next_task() is None
    assert {t.skipped for t in writer.ledger.tasks.values()} == {"give up"}
    writer.release()


def test_a_stage_whose_parent_is_no_longer_served_is_refused(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    root = writer.tree.head
    for number, shard in enumerate("ab", start=1):
        ingest(writer, shard, CATS)
        writer.close_task(f"task-000{number}", [shard], "test")
    version = writer.begin_attempt("task-0002", root)
    commit_stage(writer, "task-0001", None, 1)
    refs = {n: writer.put_artifact(version, n, b"x") for n in (STUDENT, FORWARD, BACKWARD)}
    none = writer.store.gallery_rows().slice(0, 0)
    with pytest.raises(StaleParent, match="the head is v0001"):
        writer.commit_stage(version, root, "task-0002", refs, none)
    writer.release()


def test_what_cannot_be_is_refused_with_a_remedy(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    head = writer.tree.head
    vectors = ingest(writer, "a", CATS)
    with pytest.raises(UnknownSubject, match="record that they landed"):
        writer.commit_ingest(IngestBatch(["x"], make_rows("x", CATS, vectors, head)))
    writer.record_landed([Shard("b")])
    with pytest.raises(UnknownVersion, match="v9"):
        writer.commit_ingest(IngestBatch(["b"], make_rows("b", CATS, vectors, "v9")))
    with pytest.raises(ValueError, match="dimension 6"):
        writer.commit_ingest(IngestBatch(["b"], make_rows("b", CATS, np.ones((3, 5)), head)))
    with pytest.raises(ValueError, match="not finite"):
        make_rows("b", CATS, np.full((3, DIM), np.nan), head)
    with pytest.raises(ValueError, match="no model version"):
        gallery_rows(
            item_ids=[], class_names=[], shard_ids="b", rows=[], vectors=np.ones((0, 2), "f4"), version=""
        )
    with pytest.raises(ValueError, match="needs indexed shards"):
        writer.close_task("task-0001", ["b"], "test")
    writer.close_task("task-0001", ["a"], "test")
    version = writer.begin_attempt("task-0001")
    with pytest.raises(ValueError, match="lacks artifacts"):
        writer.commit_stage(version, head, "task-0001", {}, writer.store.gallery_rows().slice(0, 0))
    with pytest.raises(ValueError, match="must be made by"):
        commit_stage(writer, "task-0001", make_rows("a", CATS, vectors, head), 1)
    with pytest.raises(ValueError, match="committed; move the head"):
        writer.refuse(head, "task-0001", "no")
    with pytest.raises(ValueError, match="cannot forget"):
        writer.forget("colour", "a")  # type: ignore[arg-type]
    writer.release()


def test_forgotten_rows_are_not_even_written(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    writer.record_landed([Shard("a")])
    writer.forget("class", "cat")
    writer.commit_ingest(IngestBatch(["a"], make_rows("a", CATS, np.ones((3, DIM)), writer.tree.head)))
    assert writer.ledger.shards["a"].classes == {"dog": 1}
    ingest(writer, "b", CATS)  # landed after the tombstone: the class has come again
    assert writer.ledger.shards["b"].classes == {"cat": 2, "dog": 1}
    writer.release()


def test_artifacts_are_checked_whenever_they_are_read(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    head = writer.tree.head
    path = tmp_path / writer.tree.get(head).artifacts[STUDENT].path
    store = Store.open(str(tmp_path))
    assert store.artifact(head, STUDENT) == b"initial"
    path.write_bytes(b"initiaX")
    with pytest.raises(ArtifactCorrupt, match="committed was"):
        store.artifact(head, STUDENT)
    path.unlink()
    with pytest.raises(ArtifactCorrupt, match="gone"):
        store.artifact(head, STUDENT)
    with pytest.raises(ArtifactCorrupt, match="no artifact 'bank'"):
        store.artifact(head, "bank")
    with pytest.raises(ValueError, match="plain file name"):
        writer.put_artifact(head, "../lease.json", b"")
    writer.release()
