"""Following an Iceberg table: each snapshot that appends is a shard, also after it has expired."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from stream_odml.ingest.iceberg_source import IcebergSource
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.versioned_table import VersionsGone
from tests.ingest.helpers import read
from tests.ingest.pictures import picture


@pytest.fixture
def table(tmp_path: Path) -> Any:
    from pyiceberg.catalog.sql import SqlCatalog  # with all of SQLAlchemy, which nothing else here needs

    catalog = SqlCatalog("c", uri=f"sqlite:///{tmp_path}/catalog.db", warehouse=f"file://{tmp_path}/house")
    catalog.create_namespace("n")
    return catalog.create_table("n.photos", rows(0).schema)


def rows(first: int, count: int = 3) -> pa.Table:
    numbers = range(first, first + count)
    return pa.table(
        {
            "image": pa.array([picture(n) for n in numbers], pa.binary()),
            "class_name": [f"c {n % 2}" for n in numbers],
            "id": [f"i{n}" for n in numbers],
        }
    )


def place(table: Any) -> str:
    return str(table.location()).removeprefix("file://")


def ids(ref: ShardRef) -> list[str]:
    found, problems = read(ref)
    assert not problems
    return [item.item_id for item in found]


def test_each_snapshot_is_one_shard_of_its_own_rows(table: Any) -> None:
    source = IcebergSource(place(table))
    assert source.poll(set()) == []
    for number in range(4):
        table.append(rows(3 * number))
    refs = source.poll(set())
    assert [ref.name for ref in refs] == [f"photos-s{n:08d}" for n in range(1, 5)]
    assert [ids(ref) for ref in refs] == [[f"i{3 * v + n}" for n in range(3)] for v in range(4)]
    assert ShardRef.from_dict(refs[0].to_dict()) == refs[0]
    assert IcebergSource(place(table)).poll({ref.stamp for ref in refs[:3]}) == refs[3:]
    assert IcebergSource(place(table), start_version=3).poll(set()) == refs[2:]
    assert IcebergSource(place(table), max_new=2).poll(set()) == refs[:2]


def test_a_table_that_is_not_there_is_waited_for(tmp_path: Path) -> None:
    assert IcebergSource(str(tmp_path / "nowhere")).poll(set()) == []


def test_a_deletion_brings_nothing_and_an_overwrite_what_it_wrote(table: Any) -> None:
    table.append(rows(0))
    table.delete("id == 'i1'")
    table.overwrite(rows(9))
    refs = IcebergSource(place(table)).poll(set())
    assert ids(refs[0]) == ["i0", "i1", "i2"]
    assert ids(refs[-1]) == ["i9", "i10", "i11"]


def test_a_snapshot_that_expired_is_read_all_the_same_and_one_that_was_missed_is_reported(table: Any) -> None:
    for number in range(3):
        table.append(rows(3 * number))
    refs = IcebergSource(place(table)).poll(set())
    old = table.snapshots()[:2]
    table.maintenance.expire_snapshots().by_ids([snapshot.snapshot_id for snapshot in old]).commit()
    for snapshot in old:
        Path(snapshot.manifest_list.removeprefix("file://")).unlink()  # as a clean-up does
    assert [ids(ref) for ref in refs] == [[f"i{3 * v + n}" for n in range(3)] for v in range(3)]
    assert IcebergSource(place(table)).poll({ref.stamp for ref in refs}) == []
    with pytest.raises(VersionsGone, match=r"source\.start_version: 3"):
        IcebergSource(place(table)).poll(set())
