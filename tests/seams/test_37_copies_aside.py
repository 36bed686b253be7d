"""Seam 37: a copy of what users store, made aside on this machine's disk, ends with the process that made it.

So it has no name there: no folder is left behind by a replica, a driver or an indexer that is killed, and what is
erased from a stream is in no such copy.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_odml.search.feature_cache import MAX_UNNAMED, FeatureCache
from stream_odml.storage.files import open_files
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums
from stream_odml.store.writer import Writer
from tests.ingest.s3_server import NOT_CHECKED, SERVER, s3_options
from tests.search.test_snapshot_oracle import TIDY
from tests.store.exact_world import D, exact_root, land
from tests.store.world import Item


@pytest.fixture(autouse=True)
def aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def open_files_of_this_process(folder: Path) -> int:
    """How many of them have no name any more and were made in the folder."""
    held = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            held += os.readlink(descriptor).startswith(f"{folder}/")
        except OSError:
            continue
    return held


def exact_gallery(root: str) -> Store:
    writer = exact_root(root)
    h = np.random.default_rng(0).random((6, D))
    land(writer, "first", [Item(f"a{i}", "cat") for i in range(6)], h)
    writer.release()
    return Store.open(root)


def test_features_of_the_gallery(tmp_path: Path, aside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, cache = exact_gallery(str(tmp_path / "root")), FeatureCache()
    [path] = store.blocks
    whole = store.features(path)
    cache.features(store, path)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "features", None)
        copied = cache.features(store, path)
    np.testing.assert_array_equal(copied.codes_nD, whole.codes_nD)
    np.testing.assert_array_equal(copied.scale_n, whole.scale_n)
    assert list(aside.rglob("*")) == []
    del copied  # which holds the file too
    assert open_files_of_this_process(aside) == 1
    writer = Writer.claim(str(tmp_path / "root"), "test")
    writer.forget("item", "a0", 1)
    forget_in_sums(writer)
    writer.maintain(TIDY)
    writer.release()
    store.refresh()
    cache.follow(store)
    assert open_files_of_this_process(aside) == 0


def test_more_copies_than_there_may_be_are_read_from_the_table(
    tmp_path: Path, aside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, cache = exact_gallery(str(tmp_path / "root")), FeatureCache()
    [path] = store.blocks
    monkeypatch.setattr("stream_odml.search.feature_cache.MAX_UNNAMED", 0)
    assert MAX_UNNAMED > 100
    np.testing.assert_array_equal(cache.features(store, path).codes_nD, store.features(path).codes_nD)
    assert open_files_of_this_process(aside) == 0


@pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)
def test_a_file_of_an_object_store(s3_port: int, bucket: str, aside: Path) -> None:
    files = open_files(f"{bucket}/root", s3_options(s3_port))
    files.write("artifacts/rows.parquet", b"x" * 100_000)
    with files.local("artifacts/rows.parquet") as path:
        assert path.read_bytes() == b"x" * 100_000
        assert path.read_bytes()[:3] == b"xxx"
        assert list(aside.rglob("*")) == []
    assert open_files_of_this_process(aside) == 0


def test_a_file_of_a_lance_dataset(tmp_path: Path, aside: Path) -> None:
    lance: Any = pytest.importorskip("lance")
    from stream_odml.ingest.lance_source import LanceTableSource
    from stream_odml.ingest.reading import RawItem, read_shard
    from tests.ingest.test_iceberg_source import rows

    lance.write_dataset(rows(0), str(tmp_path / "photos"))
    [ref] = LanceTableSource(str(tmp_path / "photos")).poll(set())
    read = iter(read_shard(ref))
    assert isinstance(next(read), RawItem)
    assert list(aside.rglob("*")) == []
    assert sum(isinstance(row, RawItem) for row in read) == 2
    assert open_files_of_this_process(aside) == 0
