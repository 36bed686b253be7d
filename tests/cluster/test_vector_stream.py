"""A running stream of vectors, served by two replicas: no trainer starts, vectors land over HTTP and by shard, and each
task is solved while clients ask. (`tests/service/test_vectors.py` does the same in one process.)
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from stream_odml.client import Client
from stream_odml.cluster.session import Session, run_stream
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.store import Store
from tests.cluster.meanwhile import meanwhile
from tests.seams.sessions import this_session
from tests.service.vector_stream import Floats, vector_config, vectors_of

pytestmark = [pytest.mark.ray, pytest.mark.slow]
WAIT_S = 500
TREES = [f"tree {i}" for i in range(4) for _ in range(10)]
BIRDS = [f"bird {i}" for i in range(3) for _ in range(10)]


@dataclass
class Running:
    """A stream of vectors and what a test has seen of it."""

    session: Session
    store: Store
    problems: list[object] = field(default_factory=list)
    """Answers to queries that were not the item that was asked for."""

    @property
    def url(self) -> str:
        return self.session.endpoints.service

    def wait(self, done: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + WAIT_S
        while not done():
            assert time.monotonic() < deadline, f"{what}: {self.session.look()}"
            time.sleep(0.1)

    def learnt(self, count: int, what: str) -> str:
        """Wait for so many versions; the newest."""

        def are_there() -> bool:
            self.store.refresh()
            return len(self.store.tree.versions) == count

        self.wait(are_there, what)
        return self.store.tree.head

    @contextmanager
    def asking(self, ids: list[str], vectors: Floats) -> Iterator[None]:
        """Ask for one item after the other meanwhile; each must be found as itself, and no query may fail."""
        random = np.random.default_rng(0)

        def ask() -> object | None:
            at = int(random.integers(len(ids)))
            hit = client.search_vector(vectors[at], k=1).hits[0]
            return (ids[at], hit) if hit.item_id != ids[at] or abs(hit.score - 1) > 1e-3 else None

        with Client(self.url, retries=0) as client, meanwhile(ask, self.problems):
            yield


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    service = {"port": 0, "replicas": 2, "num_cpus": 0.1, "poll_s": 0.05, "wait_s": 60}
    root = tmp_path_factory.mktemp("vectors") / "root"
    before = os.umask(0)  # of a user who asks for nothing
    try:
        with run_stream(vector_config(root, service=service, metrics={"port": 0})) as session:
            os.umask(before)
            yield Running(session, Store.open(session.config.root))
    finally:
        os.umask(before)


def test_after_its_start_every_file_of_a_session_is_its_own(running: Running) -> None:
    _assert_private(this_session(running.url).folder)


def _assert_private(session: Path) -> None:
    assert stat.S_IMODE(session.lstat().st_mode) == 0o700
    sockets = 0
    for folder, names, files in os.walk(session):
        for name in [*names, *files]:
            path = Path(folder) / name
            mode = path.lstat().st_mode
            if stat.S_ISLNK(mode):
                continue
            sockets += stat.S_ISSOCK(mode)
            forbidden = 0o077 if stat.S_ISDIR(mode) or stat.S_ISSOCK(mode) else 0o002
            assert not mode & forbidden, f"{path} has mode {stat.S_IMODE(mode):o}"
    assert sockets >= 2


def _class_of(client: Client, item_id: str, vector: Floats) -> str | None:
    """Return the class of the item as it is served, None while it is not."""
    hits = client.search_vector(vector, k=30).hits
    return next((hit.class_name for hit in hits if hit.item_id == item_id), None)


def test_vectors_are_learnt_and_found_without_a_trainer_and_no_query_fails(running: Running) -> None:
    store, trees, birds = running.store, vectors_of(TREES), vectors_of(BIRDS, 2)
    inbox = str(inbox_path(running.session.config))
    ids = [f"t{i}" for i in range(40)]
    complete_task(inbox, "trees", ["trees.parquet"])
    items = [NewItem(class_name=n, vector=v, item_id=i) for n, v, i in zip(TREES, trees, ids, strict=True)]
    land_items(inbox, "trees", items)
    version = running.learnt(2, "the first task")
    with Client(running.url) as client:
        # Read your own writes, whichever replica answers.
        _each_replica_finds(client, ids[3], trees[3], version)
        with running.asking(ids, trees):
            client.push_vectors(birds, [*BIRDS[:-1], None], ids=[f"b{i}" for i in range(30)])
            running.wait(lambda: _class_of(client, "b28", birds[28]) == "bird 2", "the birds")
            complete_task(inbox, "birds", None)
            version = running.learnt(3, "the second task")
            _each_replica_finds(client, "b3", birds[3], version)
            client.label("b29", "bird 2")
            running.wait(lambda: _class_of(client, "b29", birds[29]) == "bird 2", "the label")
            complete_task(inbox, "late", None)
            version = running.learnt(4, "the label")
            _each_replica_finds(client, "b29", birds[29], version)
        assert not running.problems, running.problems[:3]
        sums = store.sums_of(store.tree.head)
        assert sums is not None
        counts = dict(zip(sums.names, sums.counts_C.tolist(), strict=True))
        assert counts == dict.fromkeys([*TREES, *BIRDS], 10)
        found = client.search_vector(np.asarray(birds[29]), k=1, min_version=version).hits[0]
        assert found.class_name == "bird 2"


def _each_replica_finds(client: Client, item_id: str, vector: Floats, version: str) -> None:
    for _ in range(6):
        answer = client.search_vector(vector, k=1, min_version=version)
        assert (answer.version, answer.hits[0].item_id) == (version, item_id)
