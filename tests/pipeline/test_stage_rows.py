"""A stage finished over the disk gives what one in memory gives, to the last bit, and leaves nothing behind."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from stream_odml.learn.row_buffer import InMemoryBuffer
from stream_odml.learn.settings import GalleryMap
from stream_odml.pipeline.stage_folders import emptied
from stream_odml.pipeline.stage_rows import OnDisk, in_parts, write_rows
from stream_odml.pipeline.stages import StageRows
from stream_odml.storage.files import open_files
from stream_odml.store.store import META
from stream_odml.store.tables import GALLERY, gallery_rows
from tests.learn.tiny import SETTINGS, after, batch, learner, task


@pytest.mark.parametrize("kind", ["affine", "kernel", "affine+kernel", "identity"])
def test_on_disk_or_in_memory_is_the_same(tmp_path: Path, kind: GalleryMap) -> None:
    settings = replace(SETTINGS, gallery_map=kind, kernel_pairs=7)
    old, bank = after(1)
    pixels, labels, names = task(1)
    outcomes = []
    with emptied(tmp_path / "scratch") as folder:
        for where in (partial(OnDisk, folder), InMemoryBuffer):
            stage = learner(1, old, bank, settings)
            for step in range(3):
                stage.step(*batch(1, step))
            parts = [(pixels[p], labels[p], p) for p in np.array_split(np.arange(len(labels)), 5)]
            found = stage.finish(parts, names, len(labels), where)
            outcomes.append(replace(found, embeddings=np.array(found.embeddings)))
    disk, memory = outcomes
    assert disk.embeddings.tobytes() == memory.embeddings.tobytes()
    assert disk.indices.tobytes() == memory.indices.tobytes()
    assert disk.bank.to_bytes() == memory.bank.to_bytes()
    assert disk.forward.to_bytes() == memory.forward.to_bytes()
    assert disk.backward.to_bytes() == memory.backward.to_bytes()
    assert disk.drift == memory.drift
    assert not (tmp_path / "scratch").exists()


def test_nothing_kept_is_an_empty_array(tmp_path: Path) -> None:
    assert OnDisk(tmp_path).rows(4).shape == (0, 4)


def test_rows_on_disk_are_those_that_a_table_in_memory_would_hold(tmp_path: Path) -> None:
    random, n = np.random.default_rng(0), 20_000
    columns = {
        "item_ids": [f"i{k}" for k in range(n)],
        "class_names": [f"c{k % 9}" for k in range(n)],
        "shard_ids": [f"s{k // 1000}" for k in range(n)],
        "rows": np.arange(n) % 1000,
        "held_out": [k % 10 == 0 for k in range(n)],
        "attributes": [{"k": str(k % 3)} for k in range(n)],
    }
    vectors = random.normal(size=(n, 8)).astype(np.float32)
    old = gallery_rows(**columns, vectors=np.zeros((n, 8), np.float32), version="v1")  # type: ignore[arg-type]
    new = gallery_rows(**columns, vectors=vectors, version="v2")  # type: ignore[arg-type]
    at = random.permutation(n)
    files = open_files(str(tmp_path / "root"))
    write_rows(tmp_path / "rows.parquet", old.select(META), in_parts(at, vectors[at]), "v2")
    files.upload("artifacts/v2/rows-0.parquet", tmp_path / "rows.parquet")
    assert pq.read_schema(tmp_path / "rows.parquet").equals(GALLERY)
    with files.local("artifacts/v2/rows-0.parquet") as path:
        parts = list(StageRows([path] * 2))
    assert max(len(part) for part in parts) < n / 2
    start = 0
    for part in parts:
        expected = new.take(at[np.arange(start, start + len(part)) % n])
        assert part.equals(expected)
        start += len(part)
    assert start == 2 * n
    vectors[3] = np.nan
    with pytest.raises(ValueError, match=r"1 of \d+ vectors are not finite"):
        write_rows(tmp_path / "rows.parquet", old.select(META), in_parts(at, vectors[at]), "v2")
