"""What the log of a Delta table says, checked against the Delta library's own reading of it."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote

import pyarrow as pa
import pytest
from deltalake import DeltaTable, write_deltalake

from stream_odml.storage.delta_log import parse_commit


def test_files_that_come_and_go_are_those_that_the_library_sees(tmp_path: Path) -> None:
    uri = str(tmp_path / "table")
    for number, day in enumerate(("a b", "ü/ß", "50%")):
        rows = pa.table({"n": [number, number + 1], "day": [day] * 2})
        write_deltalake(uri, rows, mode="append", partition_by=["day"])
    table = DeltaTable(uri)
    table.delete("n = 1")
    table.optimize.compact()
    table.update_incremental()
    files, seen = dict[str, dict[str, str | None]](), 0
    for version in range(table.version() + 1):
        commit = parse_commit((Path(uri) / "_delta_log" / f"{version:020d}.json").read_bytes())
        assert commit.changes_table == (version == 0)
        assert commit.time_ms > 0
        for path in commit.removed:
            del files[path]
        for one in commit.added:
            assert (Path(uri) / one.path).stat().st_size == one.size_bytes
            files[one.path] = dict(one.partition)
            seen += one.is_new_data
        actions = pa.table(DeltaTable(uri, version=version).get_add_actions(flatten=True)).to_pylist()
        assert files == {unquote(a["path"]): {"day": a["partition.day"]} for a in actions}
    assert seen >= 3


@pytest.mark.parametrize(
    "data",
    [b'{"add": {"path": "x"}}', b'{"add": {"path": "x", "size": 1', b"[]", b'{"add": 3}', b'{"remove": {}}'],
)
def test_what_is_no_whole_commit_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="no whole commit"):
        parse_commit(data)
