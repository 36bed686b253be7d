"""Following a Delta table: each version that appends is a shard."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from stream_odml.ingest.delta_source import DeltaTableSource
from stream_odml.ingest.versioned_table import VersionsGone
from tests.ingest.helpers import read
from tests.ingest.pictures import picture


def append(path: Path, first: int, count: int = 3, **options: list[str]) -> None:
    rows = range(first, first + count)
    table = pa.table(
        {
            "image": [picture(n) for n in rows],
            "class_name": [f"c {n % 2}" for n in rows],
            "id": [f"i{n}" for n in rows],
        }
    )
    write_deltalake(path, table, mode="append", **options)  # type: ignore[call-overload]


def test_each_version_is_one_shard_of_its_own_rows(tmp_path: Path) -> None:
    path = tmp_path / "photos"
    source = DeltaTableSource(str(path))
    assert source.poll(set()) == []
    for version in range(4):
        append(path, 3 * version)
    refs = source.poll(set())
    assert [ref.name for ref in refs] == [f"photos-v{n:08d}" for n in range(4)]
    assert [[row.item_id for row in read(ref)[0]] for ref in refs] == [
        [f"i{3 * v + n}" for n in range(3)] for v in range(4)
    ]
    assert DeltaTableSource(str(path)).poll({ref.stamp for ref in refs[:3]}) == refs[3:]
    assert DeltaTableSource(str(path), start_version=2).poll(set()) == refs[2:]
    assert DeltaTableSource(str(path), max_new=2).poll(set()) == refs[:2]


def test_compaction_brings_nothing_new(tmp_path: Path) -> None:
    for first in (0, 3):
        append(tmp_path / "t", first)
    DeltaTable(tmp_path / "t").optimize.compact()
    refs = DeltaTableSource(str(tmp_path / "t")).poll(set())
    assert [len(read(ref)[0]) for ref in refs] == [3, 3, 0]


def test_partition_columns_are_columns(tmp_path: Path) -> None:
    append(tmp_path / "t", 0, 6, partition_by=["class_name"])
    (ref,) = DeltaTableSource(str(tmp_path / "t")).poll(set())
    found, problems = read(ref)
    assert sorted((row.item_id, row.class_name) for row in found) == [
        (f"i{n}", f"c {n % 2}") for n in range(6)
    ]
    assert sorted(row.row for row in found) == list(range(6))
    assert not problems


def test_a_log_that_was_cleaned_too_early_says_so(tmp_path: Path) -> None:
    for first in (0, 3, 6):
        append(tmp_path / "t", first)
    (tmp_path / "t" / "_delta_log" / f"{1:020d}.json").unlink()
    source = DeltaTableSource(str(tmp_path / "t"))
    (first_ref,) = source.poll(set())[:1]
    with pytest.raises(VersionsGone, match=r"source\.start_version: 2"):
        source.poll({first_ref.stamp})
