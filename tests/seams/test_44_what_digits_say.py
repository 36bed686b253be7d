"""Seam 44: digits that are those of a date are no number of seconds: who writes 20260131120000 means a day in 2026, and
no reader may make one of 2612 of it in silence."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest.fields import when
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
