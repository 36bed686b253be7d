"""A running stream under a discriminant head: its trunk is learnt once, then every task in seconds without an image.

A learnt class is forgotten in it by the commands a person would type: hidden, deleted, proven.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.client import Client
from stream_odml.cluster.head_solver import SOLVER_NAME
from stream_odml.cluster.runtime import NAMESPACE
from stream_odml.cluster.session import Session, run_stream
from stream_odml.config.stream import parse_config
from stream_odml.ingest.glyphs import GlyphCategory, glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.artifacts import CANARIES, FORWARD, HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.sums import learnt_rows
from tests.seams.sessions import this_session

pytestmark = pytest.mark.ray
WAIT_S = 500


def _config(root: Path) -> dict[str, object]:
    return {
        "root": str(root),
        "method": "ours",
        "model": {"backbone": "conv4", "dim": 16, "image_size": 16, "lift": 0},
        "learning": {"base_steps": 6, "classes_per_batch": 2, "images_per_class": 2, "trunk": "frozen"},
        "boundary": {"new_classes": None, "images": None, "age_s": None},
        "ingest": {"thumbnails": True},
        "evaluation": {"held_out": 0.25},
        "gate": {"enabled": False},  # six steps teach little; that is not the question here
        "cluster": {"workers": 1},
        "service": {"port": 0},
        "metrics": {"port": 0},
    }


def _wait(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def _land(inbox: str, task: str, categories: list[GlyphCategory]) -> None:
    for number, category in enumerate(categories):
        land_items(
            inbox, f"{task}-{number}", [NewItem(image, category.class_name) for image in category.images]
        )
    complete_task(inbox, task, [f"{task}-{number}.parquet" for number in range(len(categories))])


@dataclass
class Running:
    """A stream that has learnt two tasks of three classes each."""

    session: Session
    store: Store
    inbox: str
    categories: list[GlyphCategory]

    def versions(self) -> int:
        self.store.refresh()
        return len(self.store.tree.versions)

    def learn(self, task: str, first: int, count: int) -> None:
        """Land a task of three categories, and wait for so many versions in all."""
        _land(self.inbox, task, self.categories[first : first + 3])
        _wait(lambda: self.versions() == count, f"task {task}: {self.session.look()}")


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("fast") / "root"
    categories = [category for category, _ in zip(glyph_categories(0, images=12), range(9), strict=False)]
    with run_stream(parse_config(_config(root))) as session:
        stream = Running(session, Store.open(str(root)), str(inbox_path(session.config)), categories)
        _land(stream.inbox, "one", categories[:3])
        stream.learn("two", 3, 3)  # embedded by weights from nothing: anew, once there is a trunk
        yield stream


def test_a_base_then_two_tasks_are_learnt_once_each_with_the_solver_killed_between(running: Running) -> None:
    store = running.store
    solver = ray.get_actor(SOLVER_NAME, namespace=NAMESPACE)
    os.kill(ray.get(solver.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    running.learn("three", 6, 4)
    base, second, third = list(store.tree.versions.values())[1:]
    tree = store.tree
    assert not tree.same_trunk(tree.root or "", base.version_id)
    assert FORWARD in base.artifacts
    for version in (second, third):
        assert version.artifacts[STUDENT] == base.artifacts[STUDENT]
        assert set(version.artifacts) == {STUDENT, CANARIES, HEAD, SUMS}
    rows = store.gallery_rows(vectors=False)
    made = rows["version"].to_pylist()
    assert made.count(base.version_id) == 36, "the base's own rows"
    assert made.count(second.version_id) == 72, "the second task embedded anew, and what landed after it"
    assert third.version_id not in made
    assert third.metrics["steps"] == 0
    assert 0 < third.metrics["closed_to_learnt_s"] < WAIT_S
    for version in (base, second, third):
        sums = store.sums_of(version.version_id)
        assert sums is not None
        again = learnt_rows(store, version.version_id).sums(sums.lift)
        assert sums.names == again.names
        assert (sums.products_EE == again.products_EE).all(), "sums are of what is stored"
    # The attempt whose solver was killed may have been made again; each task is learnt once all the same.
    learnt = [version.task for version in store.tree.versions.values() if version.task]
    assert len(learnt) == len(set(learnt)) == 3
    with Client(running.session.endpoints.service) as client:
        query = running.categories[7]
        _wait(
            lambda: client.search_image(query.images[0]).version == third.version_id,
            "the third version serves",
        )
        hits = client.search_image(query.images[0], k=3).hits
        assert hits[0].class_name == query.class_name


def test_driver_trainer_and_replica_listen_on_the_loopback_alone(running: Running) -> None:
    listeners = this_session(running.session.endpoints.service).listeners()
    programs = " ".join(name for _, _, name in listeners)
    for program in ("raylet", "haproxy", "ray::ServeReplica", "ray::StreamDriver"):
        assert program in programs, f"{program} was not seen"
    assert not [(at, port, name[:60]) for at, port, name in listeners if not at.startswith("127.")]


def test_a_learnt_class_goes_for_good(running: Running) -> None:
    shell, root, inbox = CliRunner(), running.session.config.root, Path(running.inbox)
    name = running.categories[1].class_name
    with Client(running.session.endpoints.service) as client:
        _wait(lambda: len(client.classes()) >= 6, "the classes of two tasks are served")
        before = len(client.classes())
        said = shell.invoke(app, ["forget", root, "--class", name])
        assert said.exit_code == 0, said.output
        _wait(lambda: len(client.classes()) == before - 1, "the class is hidden")
    verify = ["forget", root, "--class", name, "--verify"]

    def is_gone() -> bool:
        said = shell.invoke(app, verify).output
        return "files searched" in said and "found in" not in said  # not where it was told to ask again

    _wait(is_gone, "its files are gone")
    said = shell.invoke(app, verify)
    assert said.exit_code == 1
    assert "landed copy" in said.output
    assert "one-1.parquet" in said.output
    said = shell.invoke(app, [*verify, "--inbox", "--yes"])
    assert said.exit_code == 0, said.output
    assert "What stays" in said.output
    assert not (inbox / "one-1.parquet").exists()
    assert (inbox / "one-0.parquet").exists()
