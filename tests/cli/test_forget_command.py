"""`forget` where no stream runs: what a person types, and what lies on the disk afterwards."""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.ingest.landing import NewItem, land_items, push_name
from stream_odml.ingest.object_store import S3Source
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import build_embedder
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.storage.atomic import ASIDE, STRAY_S
from stream_odml.store.layout import SPOOL
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.cluster.small_root import DIM, artifacts, claim, index
from tests.ingest.pictures import picture
from tests.ingest.s3_server import NOT_CHECKED, SERVER, s3_options


@pytest.fixture
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder, or a bucket whose address and keys are where a person has them: in the environment."""
    if request.param == "disk":
        return str(tmp_path)
    for name, value in s3_options(request.getfixturevalue("s3_port")).items():
        monkeypatch.setenv(name, value)
    return str(request.getfixturevalue("bucket"))


NEEDS_S3 = pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)
OPTIONS = [("class", 4), ("item", 5), ("shard", 3)]


def land_and_index(writer: Writer, inbox: str, source: S3Source | DirectorySource) -> list[ShardRef]:
    """Two shards: a of classes a0 and a1, and b of b0 and b1."""
    for name in ("a", "b"):
        land_items(
            inbox, name, [NewItem(picture(i, "PNG"), f"{name}{i % 2}", f"{name}/{i}") for i in range(3)]
        )
    model = build_embedder(EmbedderSpec("conv4", dim=DIM, image_size=16), 0)
    refs = source.poll(set())
    writer.record_landed(refs)
    for ref in refs:
        options = IndexOptions(1 << 20, True, 0.5)
        writer.commit_ingest(index_shard(ref, model, writer.tree.head, writer.store.files, options))
    return refs


@pytest.mark.parametrize(
    ("place", "option", "left"),
    [
        *(("disk", *option) for option in OPTIONS),
        pytest.param("s3", *OPTIONS[0], marks=NEEDS_S3),
        *(pytest.param("s3", *option, marks=[NEEDS_S3, pytest.mark.slow]) for option in OPTIONS[1:]),
    ],
    indirect=["place"],
)
def test_forget_then_verify_then_clear_the_inbox(place: str, option: str, left: int) -> None:
    root, inbox = f"{place}/root", f"{place}/inbox"
    source = S3Source(inbox) if place.startswith("s3://") else DirectorySource(inbox)
    writer = claim(root)
    refs = land_and_index(writer, inbox, source)
    first = next(ref for ref in refs if ref.name == "a.parquet")
    name = {"class": "a0", "item": "a/0", "shard": first.shard_id}[option]
    writer.release()
    shell, command = CliRunner(), ["forget", root, f"--{option}", name]
    early = shell.invoke(app, [*command, "--verify"])
    assert early.exit_code == 1
    assert shell.invoke(app, command).exit_code == 0
    said = shell.invoke(app, [*command, "--verify"])
    assert said.exit_code == 1
    assert "found in" not in said.output
    assert "landed copy" in said.output
    assert "a.parquet" in said.output
    assert "b.parquet" not in said.output
    said = shell.invoke(app, [*command, "--verify", "--inbox", "--yes"])
    if option == "shard":
        assert said.exit_code == 0
        assert [ref.name for ref in source.poll(set())] == ["b.parquet"]
    else:  # its other images are still to be learnt from
        assert said.exit_code == 1
        assert "still to be learnt" in said.output
        assert len(source.poll(set())) == 2
    writer = claim(root)
    assert len(writer.store.gallery_rows()) == left
    writer.release()


def test_copies_of_a_skipped_task_can_be_deleted_and_those_of_one_that_waits_not(tmp_path: Path) -> None:
    root, inbox = str(tmp_path / "root"), tmp_path / "root" / SPOOL
    writer = claim(root)
    for number, ref in enumerate(land_and_index(writer, str(inbox), DirectorySource(str(inbox))), 1):
        writer.close_task(f"task-000{number}", [ref.shard_id], "test")
    writer.skip_task("task-0001", "test")
    writer.release()
    shell = CliRunner()
    for name in ("a0", "b0"):
        assert shell.invoke(app, ["forget", root, "--class", name]).exit_code == 0
    erase = ["forget", root, "--verify", "--inbox", "--class"]
    shown = shell.invoke(app, [*erase, "a0", "--dry-run"], env={"COLUMNS": "400"})
    assert "would remove" in shown.output
    assert "`relearn` would do without" in shown.output
    assert len(list(inbox.iterdir())) == 2
    assert shell.invoke(app, [*erase, "a0", "--yes"]).exit_code == 0
    waits = shell.invoke(app, [*erase, "b0", "--yes"])
    assert (waits.exit_code, "still to be learnt" in waits.output) == (1, True)
    assert [path.name for path in inbox.iterdir()] == ["b.parquet"]


def test_under_a_solved_head_nothing_is_left_in_files_or_sums(tmp_path: Path) -> None:
    """Sums count what was learnt, and rows that they count are deleted only once they are corrected."""
    names = np.repeat(["ash", "elm", "oak"], 8)
    vectors = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    columns = {"id": [f"tree-{n}" for n in range(len(names))], "vector": list(vectors), "species": names}
    pq.write_table(pa.table(columns), tmp_path / "trees.parquet")
    shell, root = CliRunner(), str(tmp_path / "root")
    adopted = shell.invoke(
        app, ["adopt", str(tmp_path / "trees.parquet"), "--root", root, "--class", "species"]
    )
    assert adopted.exit_code == 0, adopted.output
    assert shell.invoke(app, ["forget", root, "--class", "elm"]).exit_code == 0
    said = shell.invoke(app, ["forget", root, "--class", "elm", "--verify"])
    assert (said.exit_code, "found in" in said.output) == (0, False), said.output


def pushed_elsewhere(tmp_path: Path) -> Path:
    """A root whose two pushed shards lie in a folder of their own, the first of them learnt; that folder."""
    writer, folder = claim(tmp_path / "root"), tmp_path / "elsewhere"
    source = DirectorySource(folder)
    for name in ("oak", "elm"):
        land_items(folder, push_name(name), [NewItem(picture(1, "PNG"), name, name)])
    for ref in sorted(source.poll(set()), key=lambda ref: ref.name):
        writer.record_landed([ref])
        (row,) = (row for row in read_shard(ref) if isinstance(row, RawItem))
        index(writer, ref, {row.class_name: 1})
        if row.class_name == "oak":
            writer.close_task("task-0001", [ref.shard_id], "test")
            version, rows = writer.begin_attempt("task-0001"), writer.store.gallery_rows().slice(0, 0)
            head = writer.tree.head
            writer.commit_stage(version, head, "task-0001", artifacts(writer, version), rows)
    writer.release()
    return folder


def test_forget_asks_for_a_push_folder_outside_the_root(tmp_path: Path) -> None:
    folder, root = pushed_elsewhere(tmp_path), str(tmp_path / "root")
    left = folder / f"{ASIDE}of-a-killed-process"
    left.write_bytes(picture(1, "PNG"))
    long_ago = time.time() - 2 * STRAY_S
    os.utime(left, (long_ago, long_ago))
    shell, command = CliRunner(), ["forget", root, "--class", "oak"]
    said = shell.invoke(app, command)
    assert said.exit_code == 1
    assert f"--inbox-at {folder}" in str(said.exception)
    assert len(Store.open(root).gallery_rows()) == 2  # nothing is done by halves
    writer = Writer.claim(root, "stream")
    writer.forget("class", "oak", 1)  # as its service does
    writer.release()
    said = shell.invoke(app, [*command, "--verify"])
    assert f"{left.name}: half-written" in said.output.replace("\n", "")
    assert shell.invoke(app, [*command, "--inbox-at", str(folder)]).exit_code == 0
    assert not left.exists()
    assert len(Store.open(root).gallery_rows()) == 1
    said = shell.invoke(app, [*command, "--verify", "--inbox", "--inbox-at", str(folder), "--yes"])
    assert said.exit_code == 0, said.output
    assert [file.name for file in folder.glob("*.parquet")] == [f"{push_name('elm')}.parquet"]


def test_a_rollback_finds_a_push_folder_outside_the_root(tmp_path: Path) -> None:
    folder, root = pushed_elsewhere(tmp_path), str(tmp_path / "root")
    first = Store.open(root).tree.root
    assert first is not None
    assert CliRunner().invoke(app, ["rollback", root, first]).exit_code == 0
    assert Store.open(root).ledger.tasks["task-0001"].skipped is None
    (folder / f"{push_name('oak')}.parquet").unlink()
    learnt = next(v for v in Store.open(root).tree.versions if v != first)
    for version in (learnt, first):
        assert CliRunner().invoke(app, ["rollback", root, version]).exit_code == 0
    assert "keep_pushed_h" in str(Store.open(root).ledger.tasks["task-0001"].skipped)


def test_a_class_that_went_item_by_item_and_shard_by_shard_is_proven_gone_by_name(tmp_path: Path) -> None:
    root, inbox = str(tmp_path / "root"), tmp_path / "inbox"
    writer = claim(root)
    refs = land_and_index(writer, str(inbox), DirectorySource(str(inbox)))
    writer.release()
    shell = CliRunner()

    def forget(*words: str) -> str:
        said = shell.invoke(app, ["forget", root, *words], env={"COLUMNS": "400"})
        return said.output + str(said.exception or "")

    for item in ("a/0", "a/2"):  # all of class a0
        forget("--item", item)
    assert "what had this name was erased or replaced before" in forget("--class", "a0", "--dry-run")
    shutil.rmtree(inbox)
    said = forget("--class", "a0", "--verify")
    assert "found in" not in said
    assert "What stays:" in said
    assert "forgot class a0, 0 items (what had this name was erased" in forget("--class", "a0")
    assert "What stays:" in forget("--class", "a0", "--verify")
    forget("--shard", next(ref.shard_id for ref in refs if ref.name == "b.parquet"))
    for class_name in ("b0", "b1"):
        assert "What stays:" in forget("--class", class_name, "--verify")
    assert "was never forgotten here" in forget("--class", "a1", "--verify")
    for words in (("--class", "b2"), ("--class", "b2", "--verify"), ("--class", ""), ("--item", "a/9")):
        assert "in this stream, so nothing is forgotten" in forget(*words)
