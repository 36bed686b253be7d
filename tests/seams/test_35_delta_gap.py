"""Seam 35: what an error tells somebody to set, a configuration has: the remedy for a gap in a followed table's log."""

from __future__ import annotations

import re
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from deltalake import write_deltalake

from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.versioned_table import VersionsGone
from stream_odml.pipeline.sources import open_sources


def test_the_remedy_of_a_gap_is_a_setting_that_works(tmp_path: Path) -> None:
    table = tmp_path / "table"
    for number in range(4):
        write_deltalake(str(table), pa.table({"image": [b"x"], "label": [str(number)]}), mode="append")
    for version in range(2):
        (table / "_delta_log" / f"{version:020d}.json").unlink()
    reported = {"root": str(tmp_path / "root"), "source": {"kind": "delta", "path": str(table)}}
    (source, _) = open_sources(StreamConfig.model_validate(reported))
    with pytest.raises(VersionsGone, match="version 0 is not in the log") as gap:
        source.poll(set())
    section, key, value = re.findall(r"set (\w+)\.(\w+): (\d+) in the configuration", str(gap.value))[0]
    reported[section] = {**reported[section], key: yaml.safe_load(value)}  # type: ignore[dict-item]
    (source, _) = open_sources(StreamConfig.model_validate(reported))
    assert [ref.name for ref in source.poll(set())] == ["table-v00000002", "table-v00000003"]
