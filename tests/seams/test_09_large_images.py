"""Seam 09: whatever is landed, its own reader accepts: row groups and shards are cut by bytes as well as by rows, and
landing streams."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stream_odml.cli.ingest import land_path
from stream_odml.ingest import landing, new_items, tables
from stream_odml.ingest.landing import NewItem, land_items, land_parquet
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.sources import DirectorySource
from tests.ingest.pictures import picture

MIB = 1 << 20
GROUP = MIB // 8
"""What 64 megabytes are to a stream, in the tests that land a file in many ways."""


def large_table(path: Path, sizes: list[int], row_group_size: int = 1 << 20) -> list[bytes]:
    """A Parquet file of images of these sizes; its images."""
    random = np.random.default_rng(0)
    images = [picture(n) + random.bytes(size) for n, size in enumerate(sizes)]
    table = pa.table({"image": images, "label": [n % 3 for n in range(len(images))]})
    pq.write_table(table, path, row_group_size=row_group_size, write_batch_size=8)
    return images


def read_back(inbox: Path) -> list[bytes]:
    """Images of all shards, in the order of their names."""
    refs = sorted(DirectorySource(inbox).poll(set()), key=lambda ref: ref.name)
    rows = list(chain.from_iterable(read_shard(ref) for ref in refs))
    assert all(isinstance(row, RawItem) for row in rows), rows[-1]
    return [row.image for row in rows if isinstance(row, RawItem)]


def group_bytes(inbox: Path) -> list[int]:
    """Bytes of every row group of an inbox."""
    found = []
    for path in sorted(inbox.glob("*.parquet")):
        metadata = pq.read_metadata(path)
        found += [metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups)]
    return found


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if an eighth of a megabyte were what 64 are."""
    for module in (landing, new_items):
        monkeypatch.setattr(module, "GROUP_BYTES", GROUP)
    monkeypatch.setattr(landing, "SHARD_BYTES", 8 * GROUP)
    monkeypatch.setattr(tables, "memory_allowed", lambda size: 256 * MIB)


SIZES = {
    "middling": [GROUP * 3 // 10] * 60,
    "each above a group": [3 * GROUP] * 10,
    "tiny": [10] * 600,
    "mixed": [10, 2 * GROUP, 10, 10] * 10,
    "large at the end": [0] * 300 + [5 * GROUP] * 3,
}


@pytest.mark.usefixtures("small_limits")
@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("source_groups", [7, 1 << 20])
def test_ingest_cuts_by_bytes_and_loses_nothing(tmp_path: Path, sizes: list[int], source_groups: int) -> None:
    images = large_table(tmp_path / "big.parquet", sizes, source_groups)
    list(land_path(tmp_path / "big.parquet", str(tmp_path / "inbox"), 1000, "task-a"))
    assert read_back(tmp_path / "inbox") == images
    assert max(group_bytes(tmp_path / "inbox")) <= max(2 * GROUP, max(sizes) + GROUP)
    assert all(path.stat().st_size < 24 * GROUP for path in (tmp_path / "inbox").glob("*.parquet"))
    before = {path.name: path.read_bytes() for path in (tmp_path / "inbox").glob("*.parquet")}
    list(land_parquet(tmp_path / "inbox", tmp_path / "big.parquet"))  # again: nothing changes
    assert {path.name: path.read_bytes() for path in (tmp_path / "inbox").glob("*.parquet")} == before


@pytest.mark.usefixtures("small_limits")
def test_items_are_cut_by_bytes_too(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    images = [picture(n) + random.bytes(GROUP * 4 // 10) for n in range(30)]
    land_items(tmp_path, "s", (NewItem(image, "a") for image in images))
    assert max(group_bytes(tmp_path)) <= 2 * GROUP
    assert read_back(tmp_path) == images


def test_small_images_still_make_groups_of_256(tmp_path: Path) -> None:
    images = large_table(tmp_path / "s.parquet", [10] * 1100)
    list(land_parquet(tmp_path / "inbox", tmp_path / "s.parquet", 1000))
    rows = [
        pq.read_metadata(path).row_group(n).num_rows
        for path in sorted((tmp_path / "inbox").glob("*"))
        for n in range(pq.read_metadata(path).num_row_groups)
    ]
    assert rows == [256, 256, 256, 232, 100]
    assert read_back(tmp_path / "inbox") == images


def test_an_image_that_no_reader_takes_is_not_landed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"item 1: .* bytes of image, at most"):
        land_items(tmp_path, "s", [NewItem(picture(), "a"), NewItem(bytes(65 * MIB), "a")])


PEAK = """
import json, sys
from pathlib import Path
from stream_odml.cli.ingest import land_path
from stream_odml.ingest import landing, new_items
from tests.memory import peak_mib
if unit := int(sys.argv[1]):
    landing.GROUP_BYTES = new_items.GROUP_BYTES = unit
    landing.SHARD_BYTES = 16 * unit
for number, source in enumerate(sys.argv[3:]):
    shards = len(list(land_path(Path(source), f"{sys.argv[2]}{number}", 1000, None)))
    print(json.dumps({"shards": shards, "mib": peak_mib()}))
"""


def peaks_of_ingest(inbox: Path, *sources: Path, group_bytes: int = 0) -> list[tuple[int, float]]:
    """Shards of each file, and megabytes at the peak so far of the process that lands one after the other."""
    arguments = [sys.executable, "-c", PEAK, str(group_bytes), str(inbox), *map(str, sources)]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return [(int(seen["shards"]), float(seen["mib"])) for seen in map(json.loads, done.stdout.splitlines())]


def test_landing_streams(tmp_path: Path) -> None:
    """Its memory does not grow with the file: of 128 MB it holds a few groups of one."""
    files = [tmp_path / f"{count}.parquet" for count in (48, 512)]
    for file in files:
        large_table(file, [MIB // 4] * int(file.stem), row_group_size=8)
    (_, few), (shards, many) = peaks_of_ingest(tmp_path / "inbox", *files, group_bytes=MIB)
    assert shards > 4
    assert many < few + 40, (few, many)


@pytest.mark.slow
def test_256_images_of_8_7_megabytes(tmp_path: Path) -> None:
    """The size at which one row group of 256 rows is more than any reader takes. Each page of the source, which is
    what Parquet decodes at once, holds 278 MB: the peak is several of them (1.9 and 2.4 GiB were seen)."""
    images, random = 256, np.random.default_rng(0)
    schema = pa.schema([("image", pa.binary()), ("label", pa.int64())])
    with pq.ParquetWriter(tmp_path / "big.parquet", schema, use_dictionary=False) as out:
        for start in range(0, images, 32):
            rows = [picture(n) + random.bytes(8_700_000) for n in range(start, start + 32)]
            out.write_table(pa.table({"image": rows, "label": [0] * 32}, schema=schema))
    ((shards, mib),) = peaks_of_ingest(tmp_path / "inbox", tmp_path / "big.parquet")
    (tmp_path / "big.parquet").unlink()
    print(f"{shards} shards, {mib:.0f} MiB at the peak")
    assert shards > 1
    assert mib < 3000
    assert max(group_bytes(tmp_path / "inbox0")) < 128 * MIB
    refs = DirectorySource(tmp_path / "inbox0").poll(set())
    assert sum(isinstance(row, RawItem) for ref in refs for row in read_shard(ref)) == images
