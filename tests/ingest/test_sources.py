"""Finding what is new: complete shards only, in a fixed order, cheaply, and from any starting point."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from stream_odml.ingest.landing import land_items
from stream_odml.ingest.sources import DirectorySource
from tests.ingest.helpers import seal, some_items
from tests.ingest.pictures import picture
from tests.memory import forget_peak, peak_mib


def test_each_shard_is_found_once_in_the_order_of_landing(tmp_path: Path) -> None:
    source = DirectorySource(tmp_path / "inbox")
    assert source.poll(set()) == []
    for number, name in enumerate(["b", "c", "a"]):
        uri = land_items(tmp_path / "inbox", name, some_items(2, first=number))
        os.utime(uri, ns=(number, number // 2))
    refs = source.poll(set())
    assert [ref.name for ref in refs] == ["b.parquet", "c.parquet", "a.parquet"]
    assert source.poll({ref.stamp for ref in refs[:2]}) == refs[2:]
    assert DirectorySource(tmp_path / "inbox").poll({ref.stamp for ref in refs}) == []


def test_a_pipe_in_the_inbox_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.parquet")
    land_items(tmp_path, "a", some_items(1))
    assert [ref.name for ref in DirectorySource(tmp_path).poll(set())] == ["a.parquet"]


def test_a_backlog_comes_in_bounded_parts_oldest_first(tmp_path: Path) -> None:
    for number in range(10):
        (tmp_path / f"{number}.parquet").write_bytes(b"%d" % number)
        os.utime(tmp_path / f"{number}.parquet", ns=(0, 100 - number))
    source, known, seen = DirectorySource(tmp_path, max_new=4), set[str](), list[str]()
    while refs := source.poll(known):
        assert len(refs) <= 4
        known |= {ref.stamp for ref in refs}
        seen += [ref.name[0] for ref in refs]
    assert seen == [str(number) for number in reversed(range(10))]


def test_hidden_names_and_unfinished_folders_wait(tmp_path: Path) -> None:
    (tmp_path / ".aside").write_bytes(b"x")
    (tmp_path / "_log").write_bytes(b"x")
    (tmp_path / "zoo" / "cats").mkdir(parents=True)
    (tmp_path / "zoo" / "cats" / "a.png").write_bytes(picture())
    source = DirectorySource(tmp_path)
    assert source.poll(set()) == []
    seal(tmp_path / "zoo")
    (ref,) = source.poll(set())
    assert (ref.format, ref.size_bytes) == ("folder", len(picture()))
    assert source.poll({ref.stamp}) == []


def test_a_fixed_file_is_a_new_shard_and_a_touched_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s.parquet"
    path.write_bytes(b"one")
    source = DirectorySource(tmp_path)
    (first,) = source.poll(set())
    os.utime(path, ns=(5, 5))
    (touched,) = source.poll({first.stamp})
    assert touched.shard_id == first.shard_id
    path.write_bytes(b"two")
    (fixed,) = source.poll({first.stamp, touched.stamp})
    assert fixed.shard_id != first.shard_id
    assert fixed.name == first.name


@pytest.mark.parametrize("count", [10_000])
def test_a_poll_over_many_known_shards_is_one_listing(tmp_path: Path, count: int) -> None:
    for number in range(count):
        os.close(os.open(tmp_path / f"{number:06d}.parquet", os.O_CREAT | os.O_WRONLY))
    source, known = DirectorySource(tmp_path, max_new=count), set[str]()
    known |= {ref.stamp for ref in source.poll(known)}
    assert len(known) == count
    before = forget_peak()
    start = time.process_time()
    for _ in range(3):
        assert source.poll(known) == []
    assert (time.process_time() - start) / 3 < 2.0 * count / 100_000
    assert peak_mib() - before < 4
