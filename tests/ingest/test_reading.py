"""The same rows out of every format, and what happens when the bytes change or cannot be had."""

from __future__ import annotations

import errno
import io
import json
import os
import random
import tarfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest import tables
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.reading import read_shard
from stream_odml.ingest.reasons import BadShard, Reason, TransientReadError
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.shard_file import ShardFile
from tests.ingest.helpers import land_folder, only, read, seal, some_items
from tests.ingest.pictures import picture
from tests.ingest.webdataset import land_tar

WHEN = datetime(2024, 5, 1, 12, 30, 0, 250_000, tzinfo=UTC)


def write_table(path: Path, **columns: Any) -> ShardRef:
    pq.write_table(pa.table(columns), path / "shard.parquet")
    return only(path)


def test_items_come_back_alike_from_parquet_and_tar(tmp_path: Path) -> None:
    items = [NewItem(picture(n), f"kind/{n % 2}", f"i{n}", {"lot": str(n)}, WHEN) for n in range(300)]
    land_items(tmp_path / "p", "s", items)
    land_tar(tmp_path / "t", "s", items)
    for ref in (only(tmp_path / "p"), only(tmp_path / "t")):
        found, problems = read(ref)
        assert not problems
        assert [row.row for row in found] == list(range(300))
        lots = [
            {"lot": row.attributes["lot"]} for row in found
        ]  # a tar's rows have the path of their member too
        assert [
            NewItem(r.image, r.class_name, r.item_id, lot, r.time) for r, lot in zip(found, lots, strict=True)
        ] == items


@pytest.mark.parametrize("writer", [pa.ipc.new_file, pa.ipc.new_stream])
def test_arrow_files_and_streams(tmp_path: Path, writer: Callable[..., Any]) -> None:
    table = pa.table({"bytes": [picture(n) for n in range(300)], "label": list(range(300))})
    with writer(tmp_path / "s.arrow", table.schema) as out:
        out.write_table(table, max_chunksize=70)
    ref = only(tmp_path)
    found, problems = read(ref)
    assert not problems
    assert [(row.item_id, row.class_name) for row in found] == [
        (f"{ref.shard_id}/{n}", str(n)) for n in range(300)
    ]


def test_an_arrow_stream_cut_between_batches_is_not_taken_for_whole(tmp_path: Path) -> None:
    table, out = pa.table({"image": [picture()] * 4, "label": [1, 2, 3, 4]}), io.BytesIO()
    with pa.ipc.new_stream(out, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    (tmp_path / "s.arrow").write_bytes(out.getvalue()[:-8])
    with pytest.raises(BadShard) as refusal:
        read(only(tmp_path))
    assert refusal.value.reason is Reason.TRUNCATED_FILE


def test_a_hostile_arrow_file_does_not_read_outside_its_buffers(tmp_path: Path) -> None:
    batch = pa.record_batch([pa.array([b"x" * 77]), pa.array(["a"])], names=["image", "class_name"])
    with pa.ipc.new_file(tmp_path / "s.arrow", batch.schema) as out:
        out.write_batch(batch)
    offsets, lies = (0).to_bytes(4, "little") + (77).to_bytes(4, "little"), b"\0\0\0\0\xff\xff\xff\x7f"
    data = (tmp_path / "s.arrow").read_bytes()
    at = data.rindex(offsets)
    (tmp_path / "s.arrow").write_bytes(data[:at] + lies + data[at + 8 :])
    with pytest.raises(BadShard):
        read(only(tmp_path))


def test_folder_class_is_the_path_below_the_shard(tmp_path: Path) -> None:
    for name in ("cats/a.png", "cats/b.JPG", "dogs/small/c.png", "stray.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(len(name)))
    (tmp_path / "in" / "notes.txt").write_text("not part of it")
    land_folder(tmp_path / "inbox", tmp_path / "in", "zoo")
    found, problems = read(only(tmp_path / "inbox"))
    assert [(row.row, row.class_name) for row in found] == [(0, "cats"), (1, "cats"), (2, "dogs/small")]
    assert [(problem.row, problem.reason) for problem in problems] == [(3, Reason.MISSING_LABEL)]


def test_a_folder_s_missing_and_foreign_files_spoil_only_their_rows(tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / "zoo" / "cats").mkdir(parents=True, exist_ok=True)
        (tmp_path / "zoo" / "cats" / f"{name}.png").write_bytes(picture(ord(name)))
    seal(tmp_path / "zoo")
    ref = only(tmp_path)
    (tmp_path / "zoo/cats/b.png").write_bytes(picture(99))
    (tmp_path / "zoo/cats/c.png").unlink()
    (tmp_path / "secret").write_bytes(picture(1))
    (tmp_path / "zoo/cats/d.png").unlink()
    (tmp_path / "zoo/cats/d.png").symlink_to(tmp_path / "secret")
    found, problems = read(ref)
    assert [row.row for row in found] == [0]
    assert [(p.row, p.reason) for p in problems] == [
        (1, Reason.HASH_MISMATCH),
        (2, Reason.MISSING_FILE),
        (3, Reason.UNSAFE_PATH),
    ]
    seal(tmp_path / "zoo", task="late")
    with pytest.raises(BadShard) as refusal:
        read(ref)
    assert refusal.value.reason is Reason.CHANGED_WHILE_READ


def test_a_folder_of_tables_is_one_shard_numbered_on(tmp_path: Path) -> None:
    for part in range(3):
        table = pa.table({"image": [picture(n) for n in range(5)], "class_name": [f"p{part}"] * 5})
        (tmp_path / "many").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / "many" / f"{part}.parquet")
    seal(tmp_path / "many")
    found, _ = read(only(tmp_path))
    assert [(row.row, row.class_name) for row in found] == [(n, f"p{n // 5}") for n in range(15)]


def test_hugging_face_files_keep_their_class_names(tmp_path: Path) -> None:
    image = pa.array(
        [
            {"bytes": picture(), "path": None},
            {"bytes": picture(1), "path": "x"},
            {"bytes": picture(), "path": ""},
        ]
    )
    table = pa.table({"image": image, "label": pa.array([1, 0, 7])})
    note = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}
    pq.write_table(table.replace_schema_metadata({"huggingface": json.dumps(note)}), tmp_path / "s.parquet")
    found, problems = read(only(tmp_path))
    assert [row.class_name for row in found] == ["dog", "cat"]
    assert problems[0].reason is Reason.BAD_LABEL


@pytest.mark.parametrize(
    "attributes",
    [
        pa.array([[("lot", "7"), ("gone", None)]], pa.map_(pa.string(), pa.string())),
        pa.array([{"lot": 7, "gone": None}]),
        pa.array(['{"lot": 7, "gone": null}']),
    ],
)
def test_attributes_as_map_struct_or_json(tmp_path: Path, attributes: Any) -> None:
    found, _ = read(write_table(tmp_path, image=[picture()], label=[0], attributes=attributes))
    assert found[0].attributes == {"lot": "7"}


@pytest.mark.parametrize(
    "time",
    [
        pa.array([WHEN]),
        pa.array([WHEN.astimezone(timezone(timedelta(hours=5)))]),
        pa.array([WHEN.replace(tzinfo=None)], pa.timestamp("ms")),
        pa.array([int(WHEN.timestamp() * 1e6) * 1000 + 123], pa.timestamp("ns")),
        pa.array(["2024-05-01T14:30:00.25+02:00"]),
        pa.array([WHEN.timestamp()]),
    ],
)
def test_times_become_utc(tmp_path: Path, time: Any) -> None:
    found, _ = read(write_table(tmp_path, image=[picture()], label=[0], timestamp=time))
    assert found[0].time == WHEN


@pytest.mark.parametrize("unit", ["s", "us"])
def test_a_time_outside_the_calendar_spoils_only_its_row(tmp_path: Path, unit: str) -> None:
    time = pa.array([2**62, -86_400], pa.timestamp(unit))
    table = pa.table({"image": [picture()] * 2, "label": [0, 1], "time": time})
    with pa.ipc.new_file(tmp_path / "s.arrow", table.schema) as out:
        out.write_table(table)
    found, problems = read(only(tmp_path))
    assert [row.row for row in found] == [1]
    assert [(p.row, p.reason) for p in problems] == [(0, Reason.BAD_TIME)]


def test_numbers_as_labels(tmp_path: Path) -> None:
    labels = pa.array([3.0, float("nan"), float("inf"), 2.5, -1.0, None])
    found, problems = read(write_table(tmp_path, image=[picture()] * 6, label=labels))
    assert [row.class_name for row in found] == ["3"]
    bad, missing = Reason.BAD_LABEL, Reason.MISSING_LABEL
    assert [p.reason for p in problems] == [
        missing,
        bad,
        bad,
        bad,
        missing,
    ]  # NaN is how pandas writes no value


def test_class_names_are_one_name_however_they_are_typed(tmp_path: Path) -> None:
    names = ["café", " cafe\u0301 ", "cafe\u0301"]
    found, _ = read(write_table(tmp_path, image=[picture()] * 3, class_name=names, label=[1, 2, 3]))
    assert {row.class_name for row in found} == {"café"}


def test_the_later_of_two_equal_ids_is_the_problem(tmp_path: Path) -> None:
    ids = ["x", "y", "x", None, None, "y"]
    found, problems = read(write_table(tmp_path, image=[picture()] * 6, label=[0] * 6, id=ids))
    assert [row.row for row in found] == [0, 1, 3, 4]
    assert [(p.row, p.reason) for p in problems] == [(2, Reason.DUPLICATE_ID), (5, Reason.DUPLICATE_ID)]


def write_tar(path: Path, *members: tuple[str, bytes], link: str = "") -> ShardRef:
    with tarfile.open(path / "s.tar", "w") as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            if name == link:
                member.type, member.linkname, member.size = tarfile.SYMTYPE, "/etc/passwd", 0
            tar.addfile(member, io.BytesIO(data))
    return only(path)


def test_tar_samples_group_by_key_and_take_their_class_from_any_side_file(tmp_path: Path) -> None:
    image = picture()
    ref = write_tar(
        tmp_path,
        ("a/0.png", image), ("a/0.cls", b"cat\n"),
        ("a/1.json", b'{"label": 4, "id": "one"}'), ("a/1.seg.jpg", b"?"), ("a/1.png", image),
        ("a/2.png", image), ("a/2.txt", b"a caption"),
        ("b/0.png", image), ("b/0.cls", b"7"),
    )  # fmt: skip
    found, problems = read(ref)
    assert [row.class_name for row in found] == ["cat", "4", "a caption", "7"]
    assert found[1].item_id == "one"
    assert not problems


def test_tar_members_that_cannot_be_used(tmp_path: Path) -> None:
    image = picture()
    ref = write_tar(
        tmp_path,
        ("ok.png", image), ("ok.cls", b"cat"),
        ("../up.png", image), ("/etc/abs.png", image), ("link.png", b""),
        ("bare.cls", b"dog"), ("bare2.png", image), ("ok.png", image), ("ok.cls", b"cat"),
        ("json.png", image), ("json.json", b"{"), ("last.png", image), ("last.cls", b"\xff"),
        link="link.png",
    )  # fmt: skip
    found, problems = read(ref)
    assert [row.row for row in found] == [0]
    assert [p.reason for p in problems] == [
        Reason.UNSAFE_PATH, Reason.UNSAFE_PATH, Reason.UNSAFE_PATH, Reason.MISSING_IMAGE,
        Reason.MISSING_LABEL, Reason.DUPLICATE_ID, Reason.BAD_ATTRIBUTES, Reason.BAD_LABEL,
    ]  # fmt: skip
    assert [p.row for p in problems] == list(range(1, 9))


def test_a_member_that_declares_too_much_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stream_odml.ingest.tars.MAX_IMAGE_BYTES", 10_000)
    ref = write_tar(tmp_path, ("big.png", b"\0" * 10_001), ("ok.png", picture()), ("ok.cls", b"cat"))
    found, problems = read(ref)
    assert [p.reason for p in problems] == [Reason.OVERSIZED]
    assert len(found) == 1


def test_a_row_group_that_declares_too_much_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "memory_allowed", lambda size: 8 << 20)
    land_items(tmp_path, "s", [NewItem(random.randbytes(9 << 20), "a")])
    with pytest.raises(BadShard) as refusal:
        read(only(tmp_path))
    assert refusal.value.reason is Reason.OVERSIZED


def test_a_change_half_way_is_noticed_at_the_end(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(600))
    ref = only(tmp_path)
    data = bytearray(Path(ref.uri).read_bytes())
    rows = read_shard(ref)
    next(rows)
    data[len(data) // 2] ^= 1
    Path(ref.uri).write_bytes(data)
    with pytest.raises(BadShard) as refusal:
        list(rows)
    assert refusal.value.reason is Reason.CHANGED_WHILE_READ


def test_a_replaced_file_does_not_disturb_who_has_it_open(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(600))
    ref = only(tmp_path)
    rows = read_shard(ref)
    next(rows)
    (tmp_path / "new").write_bytes(b"other")
    os.rename(tmp_path / "new", ref.uri)
    assert len(list(rows)) == 599
    with pytest.raises(BadShard):
        list(read_shard(ref))


def test_a_touched_file_is_still_the_same(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(3))
    ref = only(tmp_path)
    os.utime(ref.uri, (1, 1))
    assert len(read(ref)[0]) == 3


def test_a_vanished_file_is_refused(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(3))
    ref = only(tmp_path)
    Path(ref.uri).unlink()
    with pytest.raises(BadShard) as refusal:
        read(ref)
    assert refusal.value.reason is Reason.MISSING_FILE


@pytest.mark.parametrize("kind", ["parquet", "tar", "folder", "arrow"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ETIMEDOUT, errno.ESTALE])
def test_a_failing_disk_or_network_is_never_the_data_s_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, code: int
) -> None:
    if kind == "folder":
        (tmp_path / "zoo" / "cats").mkdir(parents=True)
        (tmp_path / "zoo" / "cats" / "a.png").write_bytes(picture())
        seal(tmp_path / "zoo")
    elif kind == "arrow":
        table = pa.table({"image": [picture()] * 50, "label": [0] * 50})
        with pa.ipc.new_file(tmp_path / "s.arrow", table.schema) as out:
            out.write_table(table)
    else:
        {"parquet": land_items, "tar": land_tar}[kind](tmp_path, "s", some_items(50))
    ref = only(tmp_path)
    for allowed in range(4):
        monkeypatch.setattr(ShardFile, "__init__", _failing_after(allowed, code))
        with pytest.raises(TransientReadError):
            list(read_shard(ref))
        monkeypatch.undo()
    assert read(ref)[0]


def _failing_after(reads: int, code: int) -> Callable[..., None]:
    """ShardFile over a medium that fails after some reads, counted over all files."""
    original = ShardFile.__init__
    left = [reads]

    class Failing:
        def __init__(self, inner: Any) -> None:
            self.inner = inner

        def readinto(self, buffer: Any) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(code, os.strerror(code))
            return int(self.inner.readinto(buffer))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.inner, name)

    def start(self: ShardFile, *args: Any) -> None:
        original(self, *args)
        self._inner = Failing(self._inner)

    return start


def test_unreadable_is_retried_not_refused(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    land_items(tmp_path, "s", some_items(3))
    ref = only(tmp_path)
    Path(ref.uri).chmod(0)
    with pytest.raises(TransientReadError):
        read(ref)
