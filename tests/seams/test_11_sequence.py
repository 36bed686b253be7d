"""Seam 11: `sequence` orders what readers have seen. Whoever asks for at least an answer's `sequence` gets all that the
answer knew, from whichever replica, though each takes in ledger and versions at its own pace."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from stream_odml.cluster.driver import StreamDriver
from stream_odml.config.service import ServiceOptions
from stream_odml.service.backend import Query
from stream_odml.service.errors import ApiError
from stream_odml.service.replica import Replica
from stream_odml.store.sequence import has_reached, sequence_of
from tests.service.tiny_stream import TinyStream


def test_one_number_orders_as_the_two_counters_do() -> None:
    rng = np.random.default_rng(0)
    pairs = [
        (-1, -1),
        (0, 0),
        (5, 3),
        (8, 0),
        (3, 5),
        *map(tuple, rng.integers(-1, 1 << 20, (60, 2)).tolist()),
    ]
    for seen in pairs:
        for asked in pairs:
            wanted = seen[0] >= asked[0] and seen[1] >= asked[1]
            assert has_reached(sequence_of(*seen), sequence_of(*asked)) == wanted
    assert sequence_of((1 << 29) - 2, 1 << 30) < 1 << 53  # JSON's numbers keep it, whoever reads them
    assert json.loads(json.dumps(sequence_of(1 << 28, 99))) == sequence_of(1 << 28, 99)


def test_it_grows_with_every_commit_that_a_reader_takes_in() -> None:
    rng, at, before = np.random.default_rng(1), [-1, -1], -1
    for step in rng.integers(0, 2, 200):
        at[step] += int(rng.integers(1, 4))
        assert sequence_of(*at) > before
        before = sequence_of(*at)


@pytest.fixture
def two(tmp_path: Path) -> Any:
    """A replica that missed the newest version, and the answer of one that saw it and missed the last shards."""
    stream = TinyStream(tmp_path)
    stream.land("a", ["cat", "dog"])
    replica = Replica(stream.root, ServiceOptions(poll_s=0.02, wait_s=0.3))
    replica.puller.poll()
    behind = replica.puller.bundle
    assert behind is not None
    stream.stage()
    replica.puller.poll()
    reported = replica.puller.bundle
    assert reported is not None
    for number in range(8):
        stream.land(f"b{number}", ["owl"])
    replica.puller.poll()
    newest = replica.puller.bundle
    assert newest is not None
    lagging = replace(behind, snapshot=replace(newest.snapshot, tree=behind.snapshot.tree))
    yield SimpleNamespace(stream=stream, replica=replica, reported=reported, lagging=lagging, newest=newest)
    stream.close()


def test_a_replica_that_is_ahead_in_one_table_waits_for_the_other(two: Any) -> None:
    replica, asked = two.replica, Query(k=1, min_seq=two.reported.sequence)
    replica.puller.bundle = two.lagging
    snapshot, seen = two.lagging.snapshot, two.reported.snapshot
    assert (
        snapshot.ledger.seq + snapshot.tree.seq > seen.ledger.seq + seen.tree.seq
    )  # a sum would have passed
    with pytest.raises(ApiError, match="not served yet"):
        asyncio.run(replica.wait_for(asked))
    replica.puller.bundle = two.newest
    asyncio.run(replica.wait_for(asked))


@pytest.mark.parametrize("change", ["rollback", "forget"])
def test_whoever_changes_something_can_read_it_back(change: str, two: Any) -> None:
    """The answer to a rollback or an erasure says what to ask for: the version alone was committed long before."""
    stream, replica = two.stream, two.replica
    first = stream.writer.tree.root
    driver = SimpleNamespace(
        _lock=threading.RLock(),
        _writer=stream.writer,
        _tidying=SimpleNamespace(erase_soon=lambda: None, pushed=stream.writer.store.files),
        _refresh_figures=lambda force: None,
    )
    changes: dict[str, Callable[[], dict[str, Any]]] = {
        "rollback": lambda: StreamDriver.request_rollback(driver, first, relearn=False),  # type: ignore[arg-type]
        "forget": lambda: StreamDriver.request_forget(driver, "class", "owl"),  # type: ignore[arg-type]
    }
    asked = Query(k=1, min_version=first, min_seq=changes[change]()["sequence"])
    with pytest.raises(ApiError, match="not served yet"):
        asyncio.run(replica.wait_for(asked))
    replica.puller.poll()
    asyncio.run(replica.wait_for(asked))
    served = replica.puller.bundle
    assert (
        served.version == first if change == "rollback" else "owl" not in {row.name for row in served.classes}
    )
