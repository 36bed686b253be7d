"""What is forgotten leaves every bank as if it had never been in it, once, and no file keeps it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest.shard import ShardRef
from stream_odml.learn.bank import ClassBank
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.store.artifacts import BANK
from stream_odml.store.erasure import forget_in_banks, without_forgotten
from stream_odml.store.errors import UnknownSubject
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.tables import gallery_rows
from stream_odml.store.writer import Writer
from tests.cluster.small_root import DIM, artifacts, claim, index, shard

NOW = MaintenancePolicy(retention=timedelta(0))


def _rows(ref: ShardRef, names: list[str], version: str, seed: int) -> pa.Table:
    vectors = np.random.default_rng(seed).normal(size=(len(names), DIM)).astype(np.float32)
    ids = [f"{ref.shard_id}/{i}" for i in range(len(names))]
    return gallery_rows(
        item_ids=ids,
        class_names=names,
        shard_ids=ref.shard_id,
        rows=range(len(names)),
        vectors=vectors,
        version=version,
    )


def _bank(old: ClassBank, rows: pa.Table, version: str) -> ClassBank:
    """What the end of a stage would make: the old means moved by 1, the new classes' means as they are."""
    names = sorted(set(rows["class_name"].to_pylist()))
    vectors = np.array(rows["vector"].to_pylist(), np.float32)
    of = np.array(rows["class_name"].to_pylist())
    means = np.array([vectors[of == name].mean(0) for name in names], np.float32).reshape(-1, DIM)
    counts = np.array([(of == name).sum() for name in names], np.int64)
    moved = old.moved(np.ones((len(old), DIM), np.float32), version) if len(old) else old
    return moved.with_classes(names, version, counts, means, means)


def _stage(
    writer: Writer, ref: ShardRef, names: list[str], task: str, old: ClassBank, seed: int
) -> ClassBank:
    """Land, index and learn one shard; the bank that was committed."""
    writer.record_landed([ref])
    index(writer, ref, {name: names.count(name) for name in dict.fromkeys(names)})
    writer.close_task(task, [ref.shard_id], "test")
    version = writer.begin_attempt(task)
    rows = _rows(ref, names, version, seed)
    bank = _bank(old, rows, version)
    named = {**artifacts(writer, version), BANK: writer.put_artifact(version, BANK, bank.to_bytes())}
    named = dict(without_forgotten(writer, version, writer.tree.head, named, [rows]))
    writer.commit_stage(version, writer.tree.head, task, named, rows)
    return ClassBank.from_bytes(writer.store.artifact(version, BANK))


def _same(a: ClassBank, b: ClassBank) -> None:
    """Equal but for the names of the versions, which are drawn at random."""
    assert a.names == b.names
    assert a.counts.tolist() == b.counts.tolist()
    for x, y in ((a.origin_means, b.origin_means), (a.means, b.means)):
        np.testing.assert_allclose(x, y, atol=1e-5)


def _current(writer: Writer) -> list[ClassBank]:
    versions = [v for v in writer.tree.versions.values() if v.parent is not None]
    return [ClassBank.from_bytes(writer.store.artifact(v.version_id, BANK)) for v in versions]


@pytest.mark.parametrize("kind", ["class", "item", "shard"])
def test_banks_are_as_if_it_had_never_been_there(tmp_path: Path, kind: str) -> None:
    a, b = shard("a"), shard("b")
    first, second = ["oak", "oak", "oak", "elm", "elm"], ["ash", "ash", "fir"]
    name = {"class": "oak", "item": f"{a.shard_id}/1", "shard": a.shard_id}[kind]
    writer = claim(tmp_path / "root")
    bank = _stage(writer, a, first, "task-0001", ClassBank.empty(DIM), 1)
    _stage(writer, b, second, "task-0002", bank, 2)
    writer.forget(kind, name)  # type: ignore[arg-type]
    # The oracle: the same two banks, made without the rows in question.
    gone = {"class": [0, 1, 2], "item": [1], "shard": [0, 1, 2, 3, 4]}[kind]
    versions = [v for v in writer.tree.versions if writer.tree.get(v).parent is not None]
    kept = _rows(a, first, versions[0], 1).filter(pa.array([i not in gone for i in range(5)]))
    wanted = [_bank(ClassBank.empty(DIM), kept, versions[0])]
    wanted.append(_bank(wanted[0], _rows(b, second, versions[1], 2), versions[1]))
    assert forget_in_banks(writer) == 2
    assert forget_in_banks(writer) == 0  # repeated, as after a crash, it takes nothing out twice
    for ours, oracle in zip(_current(writer), wanted, strict=True):
        _same(ours, oracle)
    writer.maintain(NOW)
    proof = verify_forgotten(str(tmp_path / "root"), kind, name)
    assert (proof.findings, proof.inbox) == ([], [])
    assert proof.files > 10
    writer.release()


def test_a_stage_under_way_commits_a_bank_without_it(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    a = shard("a")
    writer.record_landed([a])
    index(writer, a, {"oak": 3, "elm": 2})
    writer.close_task("task-0001", [a.shard_id], "test")
    version = writer.begin_attempt("task-0001")
    rows = _rows(a, ["oak"] * 3 + ["elm"] * 2, version, 1)
    named = {**artifacts(writer, version), BANK: writer.put_artifact(version, BANK, _bank(ClassBank.empty(DIM), rows, version).to_bytes())}  # fmt: skip  # noqa: E501
    writer.forget("class", "oak")
    named = dict(without_forgotten(writer, version, writer.tree.head, named, [rows]))
    writer.commit_stage(version, writer.tree.head, "task-0001", named, rows)
    _same(_current(writer)[0], _bank(ClassBank.empty(DIM), rows.slice(3), version))
    writer.release()


def test_the_proof_names_what_is_left(tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = claim(root)
    a = shard("a")
    _stage(writer, a, ["oak", "elm", "elm"], "task-0001", ClassBank.empty(DIM), 1)
    with pytest.raises(UnknownSubject, match="never forgotten"):
        verify_forgotten(str(root), "class", "oak")
    table = pa.table({"item_id": [f"{a.shard_id}/0"], "class_name": ["oak"], "image": [b"pixels"]})
    (root / "thumbnails").mkdir()
    pq.write_table(table, root / "thumbnails" / f"{a.shard_id}.parquet")
    writer.forget("class", "oak")
    found = verify_forgotten(str(root), "class", "oak").findings
    assert any(line.startswith("gallery/") for line in found)
    assert any(line.startswith("thumbnails/") and line.endswith("of pixels") for line in found)
    assert any("statistics" in line for line in found)
    forget_in_banks(writer)
    writer.maintain()  # keeps files of older table versions for a while
    found = verify_forgotten(str(root), "class", "oak").findings
    assert found
    assert all(line.startswith("gallery/") for line in found)
    writer.maintain(NOW)
    assert not verify_forgotten(str(root), "class", "oak").findings
    writer.release()
