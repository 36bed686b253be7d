"""Seam 44: a number is what its writer meant, or is refused. Who writes 20260131120000 as a time means a day in 2026,
not one of 2612; and a float that is too large to be every whole number is the id and the class of nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest.fields import class_name, item_id, when
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import Reason, RowError, RowProblem
from stream_odml.ingest.sources import DirectorySource
from tests.service.tiny_stream import picture


@pytest.mark.parametrize(
    "value",
    [20260131, 20260131.0, 202601311200, "202601311200", 20260131120000, "20260131120000", 19700101000000],
)
def test_a_date_without_signs_between_is_refused_with_the_remedy(value: Any) -> None:
    with pytest.raises(RowError, match="2026-01-31T12:00:00Z") as caught:
        when(value)
    assert caught.value.reason is Reason.BAD_TIME


@pytest.mark.parametrize(
    ("value", "year"),
    [
        ("20260131", 2026),
        (1_769_860_800, 2026),
        (1_769_860_800_000, 2026),
        (20_269_931, 1970),  # no month of this number
        (18_991_231, 1970),
        (2_026_013_112, 2034),  # as likely a number of seconds
        (202_613_311_200, 1976),
        (10**14 - 1, 5138),
        (2.5e17, 1977),
    ],
)
def test_other_numbers_are_what_they_were(value: Any, year: int) -> None:
    time = when(value)
    assert time is not None
    assert time.year == year


def test_a_shard_tells_it_of_its_row(tmp_path: Path) -> None:
    columns = {
        "image": [picture(0), picture(1)],
        "class_name": ["a", "b"],
        "time": [20260131120000, 1_769_860_800],
    }
    (tmp_path / "inbox").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "inbox" / "a.parquet")
    (ref,) = DirectorySource(tmp_path / "inbox").poll(())
    first, second = read_shard(ref)
    assert isinstance(first, RowProblem)
    assert first.reason is Reason.BAD_TIME
    assert isinstance(second, RawItem)
    assert second.time == datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize("read", [class_name, item_id])
@pytest.mark.parametrize("value", [float(2**53), float(2**53 + 2), 1.2345678901234567e17, -(2.0**60)])
def test_a_float_that_may_have_lost_digits_names_nothing(read: Any, value: float) -> None:
    with pytest.raises(RowError, match="may have lost digits"):
        read(value)
    if value > 0:
        assert read(int(value)) == str(int(value))
        assert read(float(2**53 - 1)) == str(2**53 - 1)


def test_ids_beside_missing_ones_are_refused_where_pandas_has_changed_them(tmp_path: Path) -> None:
    """What `Series([12345678901234567, None])` becomes: two ids are one, and neither is what was written."""
    ids = pa.array([float(12345678901234567), float(12345678901234568), 7.0, None])
    columns = {"image": [picture(at) for at in range(4)], "class_name": ["a"] * 4, "id": ids}
    (tmp_path / "inbox").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "inbox" / "a.parquet")
    (ref,) = DirectorySource(tmp_path / "inbox").poll(())
    rows = list(read_shard(ref))
    assert [row.row for row in rows if isinstance(row, RowProblem)] == [0, 1]
    assert next(row.item_id for row in rows if isinstance(row, RawItem)) == "7"
