"""Photographs as they come: every one of the folder that STREAM_ODML_DATA names decodes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.ingest.landing import land_parquet
from stream_odml.ingest.rows import Decoded, decode_shard
from stream_odml.ingest.sources import DirectorySource

DATA = os.environ.get("STREAM_ODML_DATA")
pytestmark = [
    pytest.mark.data,
    pytest.mark.skipif(not DATA, reason="STREAM_ODML_DATA names no folder of real images"),
]


@pytest.mark.parametrize(("name", "count", "classes"), [("flowers102", 4926, 102), ("grocery81", 5421, 81)])
def test_all_photographs_decode(tmp_path: Path, name: str, count: int, classes: int) -> None:
    assert DATA is not None
    list(land_parquet(tmp_path, Path(DATA) / f"{name}.parquet", rows_per_shard=2000))
    rows = [
        row
        for ref in DirectorySource(tmp_path).poll(set())
        for row in decode_shard(ref, 32, DEFAULT_MAX_PIXELS)
    ]
    assert all(isinstance(row, Decoded) for row in rows)
    assert len(rows) == count
    assert len({row.item.class_name for row in rows if isinstance(row, Decoded)}) == classes
