"""Readers on the cluster: one that hangs is ended, and no more of them run than there are cores."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stream_odml.cluster.reading import RayReaders
from stream_odml.cluster.runtime import ray_session
from stream_odml.ingest.landing import land_items
from stream_odml.ingest.sources import DirectorySource
from stream_odml.pipeline import task_cache
from tests.cluster.poisoned import poison
from tests.faults.process import descendants
from tests.ingest.helpers import some_items
from tests.pipeline.test_task_cache import cache_of, fill, twelve_shards


@pytest.fixture
def only_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the first second of a large task were over."""
    monkeypatch.setattr(task_cache, "HERE_S", -1.0)


@pytest.mark.ray
@pytest.mark.usefixtures("only_others_read")
def test_a_reader_that_hangs_is_ended_and_the_shard_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (item,) = some_items(1)
    land_items(tmp_path / "inbox", "s", [item])
    refs = DirectorySource(tmp_path / "inbox").poll(set())
    hung = tmp_path / "hung"
    once = f"os.path.exists({str(hung)!r}) or (open({str(hung)!r}, 'w').close(), time.sleep(600))"
    poison(monkeypatch, tmp_path, item.image, once)
    cache = cache_of(tmp_path / "cache", refs, 1)
    with ray_session(None, cpus=2, gpus=0):
        fill(cache, refs, RayReaders(0.1), hang_s=3.0)
    assert hung.exists()
    assert cache.is_complete
    assert not cache.lost().any()


@pytest.mark.ray
@pytest.mark.usefixtures("only_others_read")
def test_no_more_processes_read_than_there_are_cores(tmp_path: Path) -> None:
    """A start costs seconds of a core: ten at once keep an indexer from coming back for half a minute."""
    refs, cache = twelve_shards(tmp_path)
    with ray_session(None, cpus=2, gpus=0):
        fill(cache, refs, RayReaders(0.1))
        titles = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in descendants(os.getpid())]
    assert cache.is_complete
    assert 1 <= sum(title.startswith((b"ray::IDLE", b"ray::MapBatches")) for title in titles) <= 3
