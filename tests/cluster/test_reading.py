"""Readers on the cluster: one that hangs is ended, and no more of them run than there are cores."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from stream_odml.cluster import reading
from stream_odml.cluster.reading import RayReaders
from stream_odml.ingest.landing import land_items
from stream_odml.ingest.sources import DirectorySource
from stream_odml.pipeline import task_cache
from stream_odml.pipeline.task_cache import Batch
from tests.ingest.helpers import some_items
from tests.pipeline.test_task_cache import cache_of, fill, twelve_shards


@pytest.fixture
def only_others_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the first second of a large task were over."""
    monkeypatch.setattr(task_cache, "LOCAL_DECODE_S", -1.0)


def hanging_once(mark: Path) -> Callable[..., Iterator[Batch]]:
    """A reader that hangs in the middle of its work the first time it is called, wherever that is."""
    read = reading._decode_shard

    def hang_once(wanted: dict[str, Any], size: int) -> Iterator[Batch]:
        if mark.exists():
            yield from read(wanted, size)
            return
        mark.touch()
        with mock.patch.object(task_cache, "decode_rows", side_effect=lambda *_: time.sleep(600)):
            yield from read(wanted, size)

    return hang_once


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("only_others_read", "ray_cpus")
def test_a_reader_that_hangs_is_ended_and_the_shard_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    land_items(tmp_path / "inbox", "s", some_items(1))
    refs = DirectorySource(tmp_path / "inbox").poll(set())
    monkeypatch.setattr(reading, "_decode_shard", hanging_once(tmp_path / "hung"))
    cache = cache_of(tmp_path / "cache", refs, 1)
    fill(
        cache, refs, RayReaders(0.1), hang_s=12.0
    )  # on a busy machine a new process takes seconds to its first block
    assert (tmp_path / "hung").exists()
    assert cache.is_complete
    assert not cache.lost().any()


def timed(folder: Path) -> Callable[..., Iterator[Batch]]:
    """A reader that leaves a file of when it began and ended."""
    read = reading._decode_shard

    def time_it(wanted: dict[str, Any], size: int) -> Iterator[Batch]:
        began = time.monotonic()
        yield from read(wanted, size)
        time.sleep(0.3)
        (folder / f"{os.getpid()}-{began}").write_text(f"{began} {time.monotonic()}")

    return time_it


@pytest.mark.ray
@pytest.mark.usefixtures("only_others_read")
def test_no_more_processes_read_at_once_than_there_are_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_cpus: int
) -> None:
    """A start costs seconds of a core: ten at once keep an indexer from coming back for half a minute."""
    refs, cache = twelve_shards(tmp_path)
    times = tmp_path / "times"
    times.mkdir()
    monkeypatch.setattr(reading, "_decode_shard", timed(times))
    fill(cache, refs, RayReaders(0.1))
    assert cache.is_complete
    spans = [tuple(map(float, file.read_text().split())) for file in times.iterdir()]
    at_once = [sum(began <= moment < ended for began, ended in spans) for moment, _ in spans]
    assert len(spans) >= ray_cpus
    assert max(at_once) <= ray_cpus
