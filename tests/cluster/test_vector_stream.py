"""A running stream of vectors: no trainer starts, vectors land over HTTP and by shard, and each task is solved."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from stream_odml.client import Client
from stream_odml.cluster.session import run_stream
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store
from tests.service.vector_stream import Floats, vector_config, vectors_of

pytestmark = pytest.mark.ray
WAIT_S = 500
TREES = [f"tree {i}" for i in range(4) for _ in range(10)]
BIRDS = [f"bird {i}" for i in range(3) for _ in range(10)]


def _wait(done: Callable[[], bool], what: Callable[[], str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline, what()
        time.sleep(0.1)


def _class_of(client: Client, item_id: str, vector: Floats) -> str | None:
    """Return the class of the item as it is served, None while it is not."""
    hits = client.search_vector(vector, k=30).hits
    return next((hit.class_name for hit in hits if hit.item_id == item_id), None)


def test_vectors_are_learnt_and_found_without_a_trainer(tmp_path: Path) -> None:
    config = vector_config(tmp_path / "root", service={"port": 0}, metrics={"port": 0})
    with run_stream(config) as session:
        store = Store.open(session.config.root)

        def versions() -> int:
            store.refresh()
            return len(store.tree.versions)

        inbox = str(inbox_path(session.config))
        complete_task(inbox, "trees", ["trees.parquet"])
        trees = vectors_of(TREES)
        land_items(
            inbox, "trees", [NewItem(class_name=n, vector=v) for n, v in zip(TREES, trees, strict=True)]
        )
        _wait(lambda: versions() == 2, lambda: f"the first task: {session.look()}")
        with Client(session.endpoints.service) as client:
            birds = vectors_of(BIRDS, 2)
            client.push_vectors(birds, [*BIRDS[:-1], None], ids=[f"b{i}" for i in range(30)])
            _wait(
                lambda: _class_of(client, "b28", birds[28]) == "bird 2",
                lambda: f"the birds: {session.look()}",
            )
            complete_task(inbox, "birds", None)
            _wait(lambda: versions() == 3, lambda: f"the second task: {session.look()}")
            client.label("b29", "bird 2")
            _wait(
                lambda: _class_of(client, "b29", birds[29]) == "bird 2",
                lambda: f"the label: {session.look()}",
            )
            complete_task(inbox, "late", None)
            _wait(lambda: versions() == 4, lambda: f"the label: {session.look()}")
            sums = store.sums_of(store.tree.head)
            assert sums is not None
            counts = dict(zip(sums.names, sums.counts_C.tolist(), strict=True))
            assert counts == dict.fromkeys([*TREES, *BIRDS], 10)
            _wait(
                lambda: client.search_vector(birds[3]).version == store.tree.head,
                lambda: "the last version serves",
            )
            assert client.search_vector(birds[29], k=1).hits[0].item_id == "b29"
            assert client.search_vector(np.asarray(birds[29]), k=1).hits[0].class_name == "bird 2"
