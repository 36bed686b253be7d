"""A running stream under a discriminant head: its trunk is learnt once, then every task in seconds without an image.

Two replicas serve it, and no query fails meanwhile. What the session opens is on the loopback, and its folder is
closed. A learnt class is forgotten in it by the commands a person would type: hidden, deleted, proven.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import stat
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import ray
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.client import Client, ServiceError
from stream_odml.cluster.head_solver import SOLVER_NAME
from stream_odml.cluster.runtime import NAMESPACE
from stream_odml.cluster.serve import stop_service
from stream_odml.cluster.session import Session, run_stream
from stream_odml.config.stream import parse_config
from stream_odml.ingest.glyphs import GlyphCategory, glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.artifacts import CANARIES, FORWARD, HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.sums import learnt_rows
from tests.cluster.meanwhile import meanwhile
from tests.seams.sessions import this_session

pytestmark = pytest.mark.ray
WAIT_S = 500
CALLER = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, 60)
print("answered")
"""


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
        "service": {"port": 0, "replicas": 2, "num_cpus": 0.1, "poll_s": 0.05, "wait_s": 60},
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
    problems: list[object] = field(default_factory=list)
    """Answers to queries that are none."""

    def versions(self) -> int:
        self.store.refresh()
        return len(self.store.tree.versions)

    def learn(self, task: str, first: int, count: int) -> None:
        """Land a task of three categories, and wait for so many versions in all."""
        _land(self.inbox, task, self.categories[first : first + 3])
        _wait(lambda: self.versions() == count, f"task {task}: {self.session.look()}")

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Ask for one image after the other meanwhile; no query may fail or find nothing."""
        images = itertools.cycle(image for category in self.categories[:6] for image in category.images)

        def ask() -> object | None:
            hits = client.search_image(next(images), k=3).hits
            return hits if len(hits) < 3 else None

        with Client(self.session.endpoints.service, retries=0) as client, meanwhile(ask, self.problems):
            yield


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    root = tmp_path_factory.mktemp("fast") / "root"
    categories = [category for category, _ in zip(glyph_categories(0, images=12), range(9), strict=False)]
    before = os.umask(0)  # of a user who asks for nothing
    try:
        with run_stream(parse_config(_config(root))) as session:
            os.umask(before)
            folder = this_session(session.endpoints.service).folder
            stream = Running(session, Store.open(str(root)), str(inbox_path(session.config)), categories)
            _land(stream.inbox, "one", categories[:3])
            stream.learn("two", 3, 3)  # embedded by weights from nothing: anew, once there is a trunk
            yield stream
    finally:
        os.umask(before)
    assert not folder.exists()


def test_a_base_then_two_tasks_are_learnt_once_each_with_the_solver_killed_between(running: Running) -> None:
    store = running.store
    solver = ray.get_actor(SOLVER_NAME, namespace=NAMESPACE)
    os.kill(ray.get(solver.__ray_call__.remote(lambda _: os.getpid())), signal.SIGKILL)
    with running.asking():
        running.learn("three", 6, 4)
    assert not running.problems, running.problems[:3]
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
        for _ in range(6):  # whichever replica answers
            found = client.search_image(query.images[0], k=3, min_version=third.version_id)
            assert found.version == third.version_id
            assert found.hits[0].class_name == query.class_name


def test_every_socket_of_a_session_is_on_the_loopback_and_nobody_else_reaches_its_files(
    running: Running,
) -> None:
    session = this_session(running.session.endpoints.service)
    listeners = session.listeners()
    programs = " ".join(name for _, _, name in listeners)
    for program in (
        "gcs_server", "raylet", "haproxy", "ray::ServeReplica", "ray::StreamDriver", "ray::RayTrainWorker",
        "DashboardAgent",
    ):  # fmt: skip
        assert program in programs, f"{program} was not seen"
    assert not [(at, port, name[:60]) for at, port, name in listeners if not at.startswith("127.")]
    # Ray opens what lies in it to others with every worker that it starts, and nobody else gets that far.
    assert stat.S_IMODE(session.folder.lstat().st_mode) == 0o700
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(session.folder / "token")}
    wrong = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}
    with ThreadPoolExecutor() as pool:
        reported = pool.map(partial(_call, session.gcs), (token, {"RAY_AUTH_MODE": "disabled"}, wrong))
        assert ["answered" in said for said in reported] == [True, False, False]


def _call(gcs: str, variables: dict[str, str]) -> str:
    """What a process prints that calls the head with these variables of Ray's and no others."""
    own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", CALLER, gcs]
    done = subprocess.run(command, env=own | variables, capture_output=True, text=True, timeout=WAIT_S)
    return done.stdout


def test_a_learnt_class_goes_for_good(running: Running) -> None:
    shell, root, inbox = CliRunner(), running.session.config.root, Path(running.inbox)
    name = running.categories[1].class_name
    with Client(running.session.endpoints.service) as client:
        running.store.refresh()
        before = len(set(running.store.gallery_rows(vectors=False)["class_name"].to_pylist()))

        def serves(classes: int) -> bool:
            return all(len(client.classes()) == classes for _ in range(6))

        _wait(lambda: serves(before), "the classes of all tasks are served")
        said = shell.invoke(app, ["forget", root, "--class", name])
        assert said.exit_code == 0, said.output
        _wait(lambda: serves(before - 1), "the class is hidden")
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


def _shows(target: str, version: str) -> bool:
    with urllib.request.urlopen(f"http://{target}/metrics") as answer:
        return f'version="{version}"' in answer.read().decode()


def test_both_replicas_are_announced_and_show_the_version_until_the_service_is_stopped(
    running: Running,
) -> None:
    running.store.refresh()
    folder, head = Path(running.session.config.root) / "metrics", running.store.tree.head
    found = sorted(folder.glob("replica-*.json"))
    assert len(found) == 2
    for path in found:
        target = json.loads(path.read_text())[0]["targets"][0]
        _wait(partial(_shows, target, head), f"{target} shows the version")
    ray.kill(running.session.driver)
    with Client(running.session.endpoints.service) as client:
        with pytest.raises(ServiceError, match="driver_away"):
            client.rollback(head)
        assert client.search_image(running.categories[0].images[0], k=1).hits
    stop_service()
    assert not list(folder.glob("replica-*.json"))
