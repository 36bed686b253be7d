"""A running stream under a discriminant head: its trunk is learnt once, then every task in seconds without an image."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from stream_odml.client import Client
from stream_odml.cluster.head_solver import SOLVER_NAME
from stream_odml.cluster.runtime import NAMESPACE
from stream_odml.cluster.session import run_stream
from stream_odml.config.stream import parse_config
from stream_odml.ingest.glyphs import GlyphCategory, glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.pipeline.sources import inbox_path
from stream_odml.store.artifacts import CANARIES, FORWARD, HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.sums import learnt_rows

pytestmark = pytest.mark.ray
WAIT_S = 150


def _config(root: Path) -> dict[str, object]:
    return {
        "root": str(root),
        "method": "ours",
        "model": {"backbone": "conv4", "dim": 16, "image_size": 16, "lift": 0},
        "learning": {"base_steps": 6, "classes_per_batch": 2, "images_per_class": 2},
        "boundary": {"new_classes": None, "images": None, "age_s": None},
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


def test_a_base_then_two_tasks_are_learnt_once_each_with_the_solver_killed_between(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    categories = [category for category, _ in zip(glyph_categories(0, images=12), range(9), strict=False)]
    with run_stream(parse_config(_config(tmp_path / "root"))) as session:
        inbox = str(inbox_path(session.config))
        store = Store.open(root)

        def versions() -> int:
            store.refresh()
            return len(store.tree.versions)

        _land(inbox, "one", categories[:3])
        _land(inbox, "two", categories[3:6])  # embedded by weights from nothing: anew, once there is a trunk
        _wait(lambda: versions() == 3, f"the first two tasks: {session.look()}")
        solver = ray.get_actor(SOLVER_NAME, namespace=NAMESPACE)
        os.kill(ray.get(solver.pid.remote()), signal.SIGKILL)
        _land(inbox, "three", categories[6:])
        _wait(lambda: versions() == 4, f"the third task: {session.look()}")
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
        with Client(session.endpoints.service) as client:
            query = categories[7]
            _wait(
                lambda: client.search_image(query.images[0]).version == third.version_id,
                "the third version serves",
            )
            hits = client.search_image(query.images[0], k=3).hits
            assert hits[0].class_name == query.class_name
