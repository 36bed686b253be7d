"""A dose of everything that may be wrong: nothing crashes, every reason is right, every good row is used."""

from __future__ import annotations

import warnings
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.ingest.reasons import BadShard, RowProblem
from stream_odml.ingest.rows import Decoded, decode_shard
from stream_odml.ingest.sources import DirectorySource
from tests.ingest.helpers import only
from tests.ingest.malformed import malformed_files, malformed_rows, pour, table_of


@pytest.mark.parametrize("seed", [0, 1])
def test_every_bad_row_is_named_and_every_good_one_used(tmp_path: Path, seed: int) -> None:
    rows = malformed_rows(seed, 200)
    pq.write_table(table_of(rows), tmp_path / "rows.parquet", row_group_size=64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = list(decode_shard(only(tmp_path), 16, DEFAULT_MAX_PIXELS))
    reasons = [row.reason if isinstance(row, RowProblem) else None for row in found]
    assert reasons == [row.reason for row in rows]
    good = [row.item.item_id for row in found if isinstance(row, Decoded)]
    assert good == [row.fields["id"] for row in rows if row.reason is None]
    for number, row in enumerate(found):
        image = rows[number].fields["image"] or b""
        if isinstance(row, RowProblem):
            assert row.row == number
            assert row.first_bytes == image[:32]


@pytest.mark.parametrize("seed", [0, 1])
def test_every_bad_file_is_refused_for_its_reason(tmp_path: Path, seed: int) -> None:
    files = list(malformed_files(seed, 50))
    pour(tmp_path, files)
    refs = {ref.name: ref for ref in DirectorySource(tmp_path).poll(set())}
    assert refs.keys() == {file.name for file in files}  # a broken file is listed too: it must not vanish
    for file in files:
        if file.later is not None:
            (tmp_path / file.name).write_bytes(file.later)
        with pytest.raises(BadShard) as refusal:
            list(decode_shard(refs[file.name], 16, DEFAULT_MAX_PIXELS, contents=("image",)))
        assert refusal.value.reason == file.reason, (file.name, refusal.value)
        if isinstance(file.data, bytes) and file.later is None and not file.name.endswith(".json"):
            assert refusal.value.first_bytes == file.data[:32]
