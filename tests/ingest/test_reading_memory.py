"""Memory of reading a table is bounded by a batch of its rows, however large the table and its row groups are."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.ingest import tables
from stream_odml.ingest.reading import read_shard
from tests.ingest.helpers import only


def test_memory_is_bounded_by_a_batch(tmp_path: Path) -> None:
    """400 rows of 256 KiB are 100 MiB; Arrow never holds more than a few row groups of them."""
    image = os.urandom(1 << 18)
    with pq.ParquetWriter(
        tmp_path / "s.parquet", pa.schema([("image", pa.binary()), ("label", pa.int32())])
    ) as out:
        for number in range(40):
            out.write_table(pa.table({"image": [image] * 10, "label": pa.array([number] * 10, pa.int32())}))
    ref = only(tmp_path)
    before, most = pa.total_allocated_bytes(), 0
    for _ in read_shard(ref):
        most = max(most, pa.total_allocated_bytes() - before)
    assert most < 16 << 20


def test_pages_of_a_large_row_group_are_read_as_they_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole, it would take more memory than what reads it may have."""
    monkeypatch.setattr(tables, "memory_allowed", lambda size: 48 << 20)
    table = pa.table({"image": [random.randbytes(1 << 15) for _ in range(2400)], "label": [0] * 2400})
    pq.write_table(table, tmp_path / "s.parquet", use_dictionary=False, write_batch_size=32)
    assert sum(1 for _ in read_shard(only(tmp_path))) == 2400
