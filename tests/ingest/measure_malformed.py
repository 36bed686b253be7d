"""Rows and files that no one should land: each must be refused for its own reason, each good row used.

`python -m benchmarks.ingest --parts malformed` runs this as a command and keeps its figures.
"""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq

from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import Embedder, build_embedder
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.storage.files import open_files
from stream_odml.store.tables import IngestBatch
from tests.ingest.malformed import malformed_files, malformed_rows, pour, table_of
from tests.measured import Measured, measure_each_seed


def measure(report: Measured, seed: int) -> None:
    """`malformed_wrong` counts crashes, wrong reasons and good rows lost, over rows and files."""
    rows, files = (1_000, 100) if report.quick else (10_000, 1_000)
    with tempfile.TemporaryDirectory() as folder:
        index = _Indexer(Path(folder))
        wrong_rows = _rows(report, index, Path(folder) / "rows", seed, rows)
        wrong_files = _files(report, index, Path(folder) / "files", seed, files)
    report.figure("malformed_rows_tried", rows)
    report.figure("malformed_files_tried", files)
    report.figure("malformed_wrong", wrong_rows + wrong_files)


class _Indexer:
    """Tier 1 as an indexer actor runs it, without the actor."""

    def __init__(self, folder: Path) -> None:
        self._embedder: Embedder = build_embedder(EmbedderSpec("conv4", dim=16, image_size=16), 0)
        self._files = open_files(str(folder / "root"))

    def __call__(self, ref: ShardRef) -> IngestBatch:
        return index_shard(
            ref, self._embedder, "v0000-00000000", self._files, IndexOptions(DEFAULT_MAX_PIXELS, False, 0.0)
        )


def _rows(report: Measured, index: _Indexer, folder: Path, seed: int, count: int) -> int:
    folder.mkdir()
    rows = malformed_rows(seed, count)
    pq.write_table(table_of(rows), folder / "rows.parquet", row_group_size=256)
    (ref,) = DirectorySource(folder).poll(set())
    began = time.perf_counter()
    found = index(ref)
    seconds = time.perf_counter() - began
    used = set(found.rows["row"].to_pylist())
    reasons = dict(
        zip(found.quarantine["row"].to_pylist(), found.quarantine["reason"].to_pylist(), strict=True)
    )
    wrong: int = sum(
        (at not in used) if row.reason is None else (reasons.get(at) != str(row.reason) or at in used)
        for at, row in enumerate(rows)
    )
    kinds = Counter(str(row.reason) for row in rows if row.reason is not None)
    good = sum(row.reason is None for row in rows)
    report.row(
        part="malformed", what="rows", seed=seed, rows=len(rows), bad=kinds.total(), good=good, good_used=len(used),
        wrong=wrong, seconds=seconds, reasons=dict(kinds),
    )  # fmt: skip
    return wrong


def _files(report: Measured, index: _Indexer, folder: Path, seed: int, count: int) -> int:
    files = list(malformed_files(seed, count))
    pour(folder, files)
    refs = {ref.name: ref for ref in DirectorySource(folder, max_new=count * 2).poll(set())}
    wrong, began = [], time.perf_counter()
    for file in report.track(files, "malformed files"):
        if file.later is not None:
            (folder / file.name).write_bytes(file.later)
        try:
            found = index(refs[file.name])
            seen = found.quarantine["reason"].to_pylist()
        except Exception as error:
            wrong.append(f"{file.name}: {type(error).__name__} instead of {file.reason}")
            continue
        if seen != [str(file.reason)] or len(found.rows):
            wrong.append(f"{file.name}: {seen} instead of {file.reason}")
    report.row(
        part="malformed", what="files", seed=seed, files=len(files), wrong=len(wrong), examples=wrong[:5],
        seconds=time.perf_counter() - began, reasons=dict(Counter(str(file.reason) for file in files)),
    )  # fmt: skip
    return len(wrong)


if __name__ == "__main__":
    measure_each_seed("malformed", __doc__, measure)
