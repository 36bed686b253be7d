"""Seam 08: a task by manifest is what its producer said: its name, its shards, all of them, and nothing else.

From the command `ingest` through discovery, tier 1 and the boundary to the ledger, without Ray.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.cli.ingest import land_path
from stream_odml.cluster import ingestion
from stream_odml.ingest.boundary import BoundaryPolicy
from stream_odml.ingest.landing import ShardExists, complete_task, land_file, land_items
from tests.ingest.pictures import picture
from tests.pipeline.test_sources import Stream, _Here, some


@pytest.fixture
def stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stream]:
    """A stream whose boundary closes a task at every third new class."""
    monkeypatch.setattr(ingestion, "ray", _Here())
    made = Stream(tmp_path / "root", {"kind": "directory", "path": str(tmp_path / "root/inbox")})
    made.stages._policy = BoundaryPolicy(new_classes=3, images=None, age_s=None)
    yield made
    made.close()


def table(path: Path, classes: int, images: int = 4) -> Path:
    """A table of `classes`, one class after the other, as people's exports are sorted."""
    numbers = range(classes * images)
    columns: dict[str, Any] = {
        "image": pa.array([picture(n, "PNG") for n in numbers], pa.binary()),
        "class_name": pa.array([f"{path.stem}-{n // images}" for n in numbers], pa.string()),
    }
    pq.write_table(pa.table(columns), path)
    return path


def ingest(path: Path, stream: Stream, rows: int = 8, task: str | None = None) -> list[str]:
    return list(land_path(path, str(Path(stream.config.root) / "inbox"), rows, task))


def wait(stream: Stream, shards: int) -> None:
    """Until so many shards are ledgered, none waits to be indexed, and no boundary is left to close."""
    store = stream.writer.store
    stream.until(lambda: len(store.ledger.shards) == shards and not store.ledger.landed)
    stream.stages._asked_at = (-1, 0.0)
    stream.stages.close_tasks()


def tasks(stream: Stream) -> dict[str, tuple[str, set[str], int]]:
    """Closed tasks: id, the name that the producer gave, the names of their shards with images, images."""
    ledger = stream.writer.store.ledger
    return {
        task.task_id: (
            str(task.detail.get("name", "")),
            {ledger.shards[s].name for s in task.shard_ids if ledger.shards[s].rows},
            task.images,
        )
        for task in ledger.tasks.values()
    }


def test_a_task_with_more_new_classes_than_the_boundary_stays_one_task(
    stream: Stream, tmp_path: Path
) -> None:
    landed = land_path(table(tmp_path / "big.parquet", 10), f"{tmp_path}/root/inbox", 8, "base")
    for number, line in enumerate(landed, start=1):  # the driver is as fast as it can be
        assert line.startswith("landed ")
        wait(stream, number)
    assert number == 6
    assert tasks(stream) == {"task-0001": ("base", {f"big-0000{n}.parquet" for n in range(5)}, 40)}
    assert stream.writer.store.ledger.tasks["task-0001"].skipped is None


def test_the_open_task_does_not_count_what_waits_for_its_manifest(stream: Stream, tmp_path: Path) -> None:
    inbox = tmp_path / "root/inbox"
    complete_task(inbox, "base", ["base-00000.parquet", "base-00001.parquet"])
    ingest(table(tmp_path / "base.parquet", 10), stream, 100)
    ingest(table(tmp_path / "other.parquet", 2), stream, 100)
    wait(stream, 3)
    assert tasks(stream) == {}
    lines = stream.stages.explain()
    assert "1 shards with 8 images of 2 classes wait" in lines
    assert "task base is complete but waits for 1 of its shards: base-00001.parquet" in lines
    ingest(table(tmp_path / "more.parquet", 1), stream, 100)
    wait(stream, 4)
    assert [names for _, names, _ in tasks(stream).values()] == [
        {"other-00000.parquet", "more-00000.parquet"}
    ]


def test_a_manifest_after_the_boundary_closes_the_rest_or_nothing_and_says_so(
    stream: Stream, tmp_path: Path
) -> None:
    ingest(table(tmp_path / "big.parquet", 4), stream)  # two shards of two classes
    wait(stream, 2)
    assert len(tasks(stream)) == 1
    lines = ingest(tmp_path / "big.parquet", stream, task="base")
    assert any("2 of its 2 shards are learnt with an earlier task" in line for line in lines), lines
    wait(stream, 3)
    assert len(tasks(stream)) == 1
    ledger = stream.writer.store.ledger
    assert not ledger.indexed
    (problem,) = (shard.problem or "" for shard in ledger.in_state("set_aside"))
    assert "base closes nothing" in problem
    assert "task-0001" in problem
    ingest(table(tmp_path / "late.parquet", 2), stream)
    complete_task(tmp_path / "root/inbox", "mixed", ["late-00000.parquet", "big-00000.parquet"])
    wait(stream, 5)
    assert tasks(stream)["task-0002"] == ("mixed", {"late-00000.parquet"}, 8)
    assert "big-00000.parquet (task-0001)" in stream.writer.store.ledger.tasks["task-0002"].reason


def test_an_empty_table_closes_nothing(stream: Stream, tmp_path: Path) -> None:
    ingest(table(tmp_path / "waits.parquet", 2), stream)
    empty = table(tmp_path / "empty.parquet", 0)
    for task in ("base", None):
        with pytest.raises(ValueError, match=r"empty\.parquet has no rows"):
            ingest(empty, stream, task=task)
    with pytest.raises(ValueError, match="nothing to complete"):
        complete_task(tmp_path / "root/inbox", "base", [])
    (tmp_path / "root/inbox/hand.task.json").write_text(
        json.dumps({"format": 1, "task": "hand", "task_complete": True, "shards": []})
    )
    (tmp_path / "root/inbox/nobody.task.json").write_text(
        json.dumps({"format": 1, "task": None, "task_complete": True})
    )
    wait(stream, 3)
    assert tasks(stream) == {}
    reasons = stream.writer.store.quarantine_rows()["reason"].to_pylist()
    assert reasons == ["bad_manifest"] * 2


def test_all_that_waits_closes_on_demand_and_nothing_when_nothing_waits(
    stream: Stream, tmp_path: Path
) -> None:
    for name in ("before", "all", "again"):
        complete_task(tmp_path / "root/inbox", name)
        if name == "before":
            wait(stream, 1)
            ingest(table(tmp_path / "waits.parquet", 2), stream)
            wait(stream, 2)
        if name == "all":
            wait(stream, 3)
    wait(stream, 4)
    assert tasks(stream) == {"task-0001": ("all", {"waits-00000.parquet"}, 8)}
    assert not stream.writer.store.ledger.indexed


@pytest.mark.parametrize(
    "task", ["a/b", "../up", "..", "", " ", "x" * 200, "весна", "a\nb", "a b", ".hidden"]
)
def test_a_name_that_is_no_file_name_fails_before_anything_landed(tmp_path: Path, task: str) -> None:
    inbox = tmp_path / "inbox"
    with pytest.raises(ValueError, match=r"task .*expected 1-140 letters"):
        list(land_path(table(tmp_path / "big.parquet", 4), str(inbox), 8, task))
    assert not inbox.exists()


def test_a_task_that_was_completed_before_fails_before_anything_landed(tmp_path: Path) -> None:
    inbox = tmp_path / "inbox"
    land_items(inbox, "s", some("s"))
    complete_task(inbox, "base", ["s.parquet"])
    before = sorted(path.name for path in inbox.iterdir())
    with pytest.raises(ShardExists, match="'base' was completed before, with other shards"):
        list(land_path(table(tmp_path / "big.parquet", 4), str(inbox), 8, "base"))
    assert sorted(path.name for path in inbox.iterdir()) == before


@pytest.mark.parametrize("rows", [8, 100])
def test_a_task_does_not_take_other_shards_of_its_names(tmp_path: Path, rows: int) -> None:
    inbox = tmp_path / "inbox"
    list(land_path(table(tmp_path / "big.parquet", 4), str(inbox), rows, None))
    before = sorted(path.name for path in inbox.iterdir())
    with pytest.raises(ShardExists, match="exists with other content"):
        list(land_path(table(tmp_path / "big.parquet", 5, images=3), str(inbox), rows, "spring"))
    assert sorted(path.name for path in inbox.iterdir()) == before


@pytest.mark.parametrize("name", ["a/b", "..", "", "x" * 300, "ö", "-x"])
def test_every_argument_is_checked_before_the_first_byte(tmp_path: Path, name: str) -> None:
    inbox = tmp_path / "inbox"
    table(tmp_path / "big.parquet", 2)
    (tmp_path / "zoo/cats").mkdir(parents=True)
    (tmp_path / "zoo/cats/a.png").write_bytes(picture())
    for path in (tmp_path / "big.parquet", tmp_path / "zoo"):
        with pytest.raises(ValueError, match="shard name"):
            list(land_path(path, str(inbox), 8, "base", name))
    assert not inbox.exists()


def damaged(folder: Path, suffix: str) -> Path:
    """A file of 3,000 images, one of whose last bytes of data are overwritten."""
    names = [f"class {i % 2}" for i in range(3000)]
    rows = pa.table({"image": [picture(i) for i in range(50)] * 60, "class_name": names})
    path = folder / f"big{suffix}"
    if suffix == ".parquet":
        pq.write_table(rows, path, row_group_size=500, compression="zstd", use_dictionary=False)
        group = pq.ParquetFile(path).metadata.row_group(5).column(0)
        at, count = group.data_page_offset, 200
    else:
        with pa.ipc.new_file(path, rows.schema) as out:
            for batch in rows.to_batches(500):
                out.write(batch)
        at = path.read_bytes().rindex(b"\xff\xff\xff\xff", 0, -8000)
        count = 64
    with path.open("r+b") as file:
        file.seek(at)
        file.write(b"\xfe" * count)
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("task", ["spring", None])
def test_a_file_that_is_damaged_far_behind_its_start_lands_nothing(
    tmp_path: Path, suffix: str, task: str | None
) -> None:
    """The task would wait for ever for shards that no repetition of the command lands."""
    path, inbox = damaged(tmp_path, suffix), tmp_path / "inbox"
    with pytest.raises(ValueError, match=rf"big{suffix} cannot be read: .*corrupt_file"):
        list(land_path(path, str(inbox), 100, task))
    assert not inbox.exists()
    with pytest.raises(ValueError, match="cannot be read"):
        land_file(inbox, path)
    folder = tmp_path / "zoo"
    (folder / "cats").mkdir(parents=True)
    (folder / "cats/a.png").write_bytes(picture())
    path.rename(folder / path.name)
    said = list(land_path(folder, str(inbox), 100, task))
    assert any("passed over: " in line and "cannot be read" in line for line in said)
    assert {one.name for one in inbox.iterdir()} == {"zoo"} | ({"spring.task.json"} if task else set())
