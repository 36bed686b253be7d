"""Seam 19: a small file that decodes to gigabytes is refused with a reason, and costs its reader little memory."""

from __future__ import annotations

import io
import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest import bounds, tables
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.reading import read_shard
from stream_odml.ingest.reasons import BadShard, Reason, RowProblem, TransientReadError
from tests.ingest.helpers import only, read, some_items
from tests.ingest.pictures import picture
from tests.memory import forget_peak, peak_mib

MIB = 1 << 20
PROBE = """
import json, resource, sys
from tests.ingest.helpers import only
from tests.memory import peak_mib
from stream_odml.ingest.reading import read_shard
from stream_odml.ingest.reasons import BadShard, RowProblem
from stream_odml.ingest import bounds, tables
from pathlib import Path

def peak_of_decoders():
    ended = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return max([ended, *(peak_mib(decoder._process.pid) for decoder in tables._idle)])

list(read_shard(only(Path(sys.argv[1]))))  # an honest shard: everything is loaded
before = peak_mib(), peak_of_decoders()
for folder in sys.argv[2:]:
    refused, rows = "", 0
    try:
        for row in read_shard(only(Path(folder))):
            rows += 1
    except BadShard as error:
        refused = str(error.reason) + ": " + error.detail
    list(read_shard(only(Path(sys.argv[1]))))  # an honest shard is read as before
    after = peak_mib(), peak_of_decoders()  # of all so far
    seen = {"refused": refused, "rows": rows, "mib": sum(b - a for a, b in zip(before, after))}
    print(json.dumps(seen), flush=True)
"""


def zeros(count: int, mib: int) -> pa.Array:
    return pa.array([b"\0" * (mib * MIB)] * count, pa.large_binary())


def arrow_of_compressed_zeros(path: Path) -> None:
    batch = pa.record_batch({"image": zeros(5, 60), "label": pa.array(range(5))})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path / "bomb.arrow", batch.schema, options=options) as out:
        out.write_batch(batch)


def arrow_stream_of_compressed_zeros(path: Path) -> None:
    batch = pa.record_batch({"image": zeros(5, 60), "label": pa.array(range(5))})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(path / "bomb.arrow", batch.schema, options=options) as out:
        out.write_batch(batch)


def parquet_of_compressed_zeros(path: Path) -> None:
    table = pa.table({"image": zeros(7, 40), "label": pa.array(range(7))})
    pq.write_table(table, path / "bomb.parquet", compression="zstd", use_dictionary=False, write_batch_size=1)


def parquet_that_lies_about_its_sizes(path: Path) -> None:
    """Its footer declares a row group of a few bytes."""
    parquet_of_compressed_zeros(path)
    lie_about_sizes(path / "bomb.parquet", column=0)


def lie_about_sizes(path: Path, column: int) -> None:
    """Declare a row group of a few bytes in the footer of a file, and as few for one column."""
    metadata = pq.read_metadata(path)
    true = metadata.row_group(0).total_byte_size
    data = path.read_bytes()
    at = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    lies = data[at:].replace(_zigzag(true), _zigzag(1 << 20, len(_zigzag(true))))
    size = metadata.row_group(0).column(column).total_uncompressed_size
    lies = lies.replace(_zigzag(size), _zigzag(1000, len(_zigzag(size))))
    path.write_bytes(data[:at] + lies)
    assert pq.read_metadata(path).row_group(0).total_byte_size <= 1 << 28


def _zigzag(value: int, width: int = 0) -> bytes:
    value, out = value * 2, bytearray()
    while value >= 128 or len(out) < width - 1:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def parquet_dictionary_of_one_value(path: Path) -> None:
    indices = pa.array(np.zeros(175, np.int32))
    image = pa.DictionaryArray.from_arrays(indices, pa.array([b"\0" * (20 * MIB)]))
    table = pa.table({"image": image, "label": pa.array([1] * 175)})
    pq.write_table(table, path / "bomb.parquet", compression="zstd", dictionary_pagesize_limit=64 * MIB)


def arrow_dictionary_of_one_value(path: Path) -> None:
    indices = pa.array(np.zeros(4000, np.int32))
    image = pa.DictionaryArray.from_arrays(indices, pa.array([b"\0" * MIB]))
    batch = pa.record_batch({"image": image, "label": pa.array([1] * 4000)})
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_file(path / "bomb.arrow", batch.schema, options=options) as out:
        out.write_batch(batch)


def arrow_runs_of_one_value(path: Path) -> None:
    image = pa.RunEndEncodedArray.from_arrays(pa.array([100_000], pa.int32()), pa.array([b"\0" * MIB]))
    batch = pa.record_batch({"image": image, "label": pa.array([1] * 100_000)})
    with pa.ipc.new_file(path / "bomb.arrow", batch.schema) as out:
        out.write_batch(batch)


def arrow_rows_of_nothing(path: Path) -> None:
    """Forty million rows without a byte."""
    rows = 40_000_000
    image = pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array([None], pa.binary()))
    label = pa.RunEndEncodedArray.from_arrays(pa.array([rows], pa.int32()), pa.array(["a"]))
    batch = pa.record_batch({"image": image, "class_name": label})
    with pa.ipc.new_file(path / "bomb.arrow", batch.schema) as out:
        out.write_batch(batch)


def parquet_of_nested_lists(path: Path) -> None:
    inner = pa.ListArray.from_arrays(pa.array([0, 40_000_000], pa.int32()), pa.nulls(40_000_000, pa.int64()))
    attributes = pa.StructArray.from_arrays([inner], ["tags"])
    table = pa.table({"image": [picture()], "label": [1], "attributes": attributes})
    pq.write_table(table, path / "bomb.parquet", compression="zstd")


def parquet_of_huge_metadata(path: Path) -> None:
    table = pa.table({"image": [picture()], "label": [1]})
    table = table.replace_schema_metadata({"notes": "\0" * (90 * MIB)})
    pq.write_table(table, path / "bomb.parquet", compression="zstd")


BOMBS: dict[Callable[[Path], None], str] = {
    arrow_of_compressed_zeros: "oversized",
    arrow_stream_of_compressed_zeros: "oversized",
    parquet_of_compressed_zeros: "oversized: row group 0 declares",
    parquet_that_lies_about_its_sizes: "oversized",
    parquet_dictionary_of_one_value: "oversized",
    arrow_dictionary_of_one_value: "oversized",
    arrow_runs_of_one_value: "oversized",
    arrow_rows_of_nothing: "oversized",
    parquet_of_nested_lists: "oversized",
}


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What one process saw of all bombs, one after the other: its peak with that of its decoders is of all so far."""
    folder = tmp_path_factory.mktemp("bombs")
    land_items(folder / "honest", "s", some_items(3))
    inboxes = [folder / bomb.__name__ for bomb in BOMBS]
    for bomb, inbox in zip(BOMBS, inboxes, strict=True):
        inbox.mkdir()
        bomb(inbox)
        assert only(inbox).size_bytes < 3 * MIB
    arguments = [sys.executable, "-c", PROBE, str(folder / "honest"), *map(str, inboxes)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=600)
    lines = map(json.loads, done.stdout.splitlines())
    return {inbox.name: line for inbox, line in zip(inboxes, lines, strict=True)}


@pytest.mark.parametrize("bomb", BOMBS, ids=lambda bomb: bomb.__name__)
def test_a_bomb_is_refused_and_costs_little(
    seen: dict[str, dict[str, Any]], bomb: Callable[[Path], None]
) -> None:
    reported = seen[bomb.__name__]
    assert reported["refused"].startswith(BOMBS[bomb]), reported
    assert reported["mib"] < 300, reported


def test_many_columns_deep_nesting_and_long_metadata_are_read_or_refused(tmp_path: Path) -> None:
    names = [f"c{n}" for n in range(20_000)]
    wide = pa.table({"image": [picture()], "label": [1]} | {name: [0] for name in names})
    deep: pa.DataType = pa.int8()
    for _ in range(60):
        deep = pa.list_(deep)
    nested = pa.table(
        {"image": [picture()], "label": [1], "attributes": pa.array([{"a": None}], pa.struct([("a", deep)]))}
    )
    long = pa.table({"image": [picture()], "label": [1]}).replace_schema_metadata({"notes": "x" * (20 * MIB)})
    for name, table in {"wide": wide, "nested": nested, "long": long}.items():
        (tmp_path / name).mkdir()
        pq.write_table(table, tmp_path / name / "s.parquet")
        with pa.ipc.new_file(tmp_path / name / "t.arrow", table.schema) as out:
            out.write_table(table)
        for suffix in ("s.parquet", "t.arrow"):
            (tmp_path / name / suffix).rename(tmp_path / suffix)
            try:
                items, problems = read(only(tmp_path))
            except BadShard as error:
                assert error.reason in (Reason.OVERSIZED, Reason.CORRUPT_FILE)  # noqa: PT017
            else:
                assert len(items) + len(problems) == 1
            (tmp_path / suffix).unlink()


def test_an_honest_shard_much_larger_than_the_free_allowance_is_read(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    items = (NewItem(picture(n) + random.bytes(MIB), "a", str(n)) for n in range(300))
    land_items(tmp_path, "s", items)
    assert only(tmp_path).size_bytes > 300 * MIB
    assert sum(len(row.image) > MIB for row in read_shard(only(tmp_path))) == 300  # type: ignore[union-attr]


def test_a_sparse_tar_is_bounded_too(tmp_path: Path) -> None:
    """Members that are holes: a hundred of 60 MB in a file of a few kilobytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for n in range(100):
            member = tarfile.TarInfo(f"{n}.png")
            member.type = tarfile.GNUTYPE_SPARSE
            head = bytearray(member.tobuf(tarfile.GNU_FORMAT))
            head[386:410] = b"%011o\0%011o\0" % (0, 0)
            head[483:495] = b"%011o\0" % (60 * MIB)
            head[148:156] = b"%06o\0 " % (sum(head[:148]) + 8 * 32 + sum(head[156:512]))
            out.write(bytes(head))
            tar.offset = out.tell()
    (tmp_path / "s.tar").write_bytes(out.getvalue())
    with pytest.raises(BadShard) as refusal:
        read(only(tmp_path))
    assert refusal.value.reason is Reason.OVERSIZED


@pytest.mark.parametrize(("entries", "expected"), [(1500, "oversized"), (4000, "bad_attributes")])
def test_one_long_map_that_all_rows_repeat_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, entries: int, expected: str
) -> None:
    monkeypatch.setattr(bounds, "decoded_allowed", lambda size: 4 * MIB)
    rows = 60
    pairs = pa.array([{"key": f"k{n}", "value": "v"} for n in range(entries)])
    offsets, sizes = pa.array([0] * rows, pa.int32()), pa.array([entries] * rows, pa.int32())
    attributes = pa.ListViewArray.from_arrays(offsets, sizes, pairs)
    table = pa.table({"image": [picture(1)] * rows, "label": ["a"] * rows, "attributes": attributes})
    with pa.ipc.new_file(tmp_path / "s.arrow", table.schema) as out:
        out.write_table(table)
    seen: set[str] = set()
    try:
        seen.update(str(row.reason) for row in read_shard(only(tmp_path)) if isinstance(row, RowProblem))
    except BadShard as error:
        seen = {str(error.reason)}
    assert seen == {expected}


def test_rows_without_a_byte_are_counted_over_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds, "decoded_allowed", lambda size: 4 * MIB)
    batch = pa.record_batch({"image": pa.nulls(1000, pa.binary()), "class_name": ["a"] * 1000})
    with pa.ipc.new_file(tmp_path / "s.arrow", batch.schema) as out:
        for _ in range(8):
            out.write_batch(batch)
    rows = read_shard(only(tmp_path))
    with pytest.raises(BadShard, match=r"oversized: .* bytes in 4097 rows"):
        list(rows)


def test_members_that_are_not_used_are_not_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for n in range(40):
            member = tarfile.TarInfo(f"a.part{n}")
            member.size = 8 * MIB
            tar.addfile(member, io.BytesIO(bytes(8 * MIB)))
        for name, data in (("a.png", picture()), ("a.cls", b"cat")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    before = forget_peak()
    items, _ = read(only(tmp_path))
    assert [item.class_name for item in items] == ["cat"]
    assert peak_mib() - before < 60


def _decoder_pid() -> int:
    return int(tables._idle[-1]._process.pid)


def test_a_decoder_that_is_killed_while_it_waits_is_replaced(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(3))
    read(only(tmp_path))
    os.kill(_decoder_pid(), signal.SIGKILL)
    tables._idle[-1]._process.wait()
    assert len(read(only(tmp_path))[0]) == 3


def test_a_decoder_that_is_killed_from_outside_is_no_fault_of_the_shard(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(600))
    read(only(tmp_path))
    pid = _decoder_pid()
    rows = read_shard(only(tmp_path))
    next(rows)
    os.kill(pid, signal.SIGKILL)
    with pytest.raises(TransientReadError):
        list(rows)
    rows = read_shard(only(tmp_path))
    next(rows)


def test_a_decoder_that_crashes_costs_its_shard_and_says_so(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(600))
    read(only(tmp_path))
    pid = _decoder_pid()
    rows = read_shard(only(tmp_path))
    next(rows)
    os.kill(pid, signal.SIGSEGV)
    with pytest.raises(BadShard, match=r"killed_reader: .*signal 11 \(Segmentation fault\)"):
        list(rows)


def test_readers_that_stop_early_and_threads_do_not_disturb_each_other(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(200))
    ref, found = only(tmp_path), []
    for _ in range(3):
        next(read_shard(ref)).row  # noqa: B018

    def work() -> None:
        found.append([row.row for row in read_shard(ref)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [list(range(200))] * 4


def test_a_forked_process_has_none_of_its_parents_decoders(tmp_path: Path) -> None:
    land_items(tmp_path, "s", some_items(3))
    read(only(tmp_path))
    assert tables._idle
    child = os.fork()
    if not child:
        os._exit(len(tables._idle))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert tables._idle


def test_a_decoder_knows_no_secret_and_lives_with_the_limits_of_its_parent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_items(tmp_path, "s", some_items(3))
    while tables._idle:
        tables._taken_decoder().end()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "do not tell")
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_CPU, (500, 500));"
        "from tests.ingest.helpers import only, read; from pathlib import Path;"
        "print(len(read(only(Path(sys.argv[1])))[0]))"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert done.stdout == "3\n", done.stderr
    assert (soft, hard) == resource.getrlimit(resource.RLIMIT_CPU)
    read(only(tmp_path))
    assert b"do not tell" not in Path(f"/proc/{_decoder_pid()}/environ").read_bytes()
