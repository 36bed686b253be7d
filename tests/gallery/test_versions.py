"""The version tree and the maps along it, against walking and mapping by hand."""

import itertools
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from stream_odml.gallery.artifacts import FORWARD
from stream_odml.gallery.errors import NoVersionYet, UnknownVersion
from stream_odml.gallery.mapping import Mapper
from stream_odml.gallery.versions import VersionTree
from stream_odml.learn.drift import DriftMap, IdentityMap
from tests.gallery.world import Twin, drift_pair

# root - a - b - c
#         \ d - e
PARENTS = {"root": None, "a": "root", "b": "a", "c": "b", "d": "a", "e": "d"}


def row(seq: int, kind: str, version_id: str, parent: str | None = None, **more: Any) -> dict[str, Any]:
    blank = {
        "task": "",
        "artifacts": "{}",
        "metrics": "{}",
        "reason": "",
        "time": datetime.now(UTC),
        "epoch": 1,
    }
    return {"seq": seq, "kind": kind, "version_id": version_id, "parent": parent or "", **blank, **more}


def tree() -> VersionTree:
    versions = [
        row(i, "version", name, parent, task=f"t {name}") for i, (name, parent) in enumerate(PARENTS.items())
    ]
    return VersionTree.replay([*versions, row(10, "head", "c")])


def twin() -> Twin:
    drifts = {name: drift_pair(seed) for seed, name in enumerate(PARENTS) if name != "root"}
    return Twin(parents=dict(PARENTS), drifts=drifts)


@pytest.mark.parametrize(("start", "end"), list(itertools.product(PARENTS, PARENTS)))
def test_paths_and_maps_between_any_two_versions(start: str, end: str) -> None:
    naive = twin()

    def load(version: str, name: str) -> DriftMap:
        return naive.drifts[version][0 if name == FORWARD else 1]

    assert tree().path(start, end) == naive.walk(start, end)
    vectors = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    mapped = Mapper(load).get(tree(), start, end).apply(vectors)
    expected = [naive.moved(v.astype(float), start, end) for v in vectors]
    np.testing.assert_allclose(mapped, expected, atol=1e-5)


def test_a_mapper_that_served_one_head_needs_only_the_last_stage_for_the_next() -> None:
    loaded = []
    naive = twin()

    def load(version: str, name: str) -> DriftMap:
        loaded.append((version, name))
        return naive.drifts[version][0 if name == FORWARD else 1]

    mapper = Mapper(load)
    mapper.get(tree(), "root", "b")
    assert sorted(loaded) == [("a", FORWARD), ("b", FORWARD)]
    mapper.get(tree(), "root", "c")
    assert loaded[2:] == [("c", FORWARD)]
    assert mapper.get(tree(), "a", "c").kind == "affine"
    assert isinstance(mapper.get(tree(), "c", "c"), IdentityMap)


def test_a_thousand_affine_stages_are_one_matrix_and_keep_their_precision() -> None:
    rows = [row(0, "version", "v0")] + [row(i, "version", f"v{i}", f"v{i - 1}") for i in range(1, 1001)]
    deep = VersionTree.replay([*rows, row(2000, "head", "v1000")])
    pair = drift_pair(3)

    def load(version: str, name: str) -> DriftMap:  # there and back again: even stages undo the odd ones
        return pair[int(version[1:]) % 2]

    vectors = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    drift = Mapper(load).get(deep, "v0", "v1000")
    assert drift.kind == "affine"
    np.testing.assert_allclose(drift.apply(vectors), vectors, atol=1e-4)


def test_learnt_tasks_follow_the_head() -> None:
    state = tree()
    assert state.learnt() == {"t root", "t a", "t b", "t c"}
    back = VersionTree.replay([row(11, "head", "d", reason="rollback")], after=state)
    assert back.head == "d"
    assert state.learnt() - back.learnt() == {"t b", "t c"}
    assert back.children("a") == ["b", "d"]
    assert [m.reason for m in back.moves] == ["", "rollback"]


def test_evaluations_artifacts_and_retirement_amend_a_version() -> None:
    state = VersionTree.replay(
        [
            row(11, "evaluation", "c", metrics='{"recall": 0.5}'),
            row(12, "artifact", "c", artifacts='{"bank": {"path": "p", "sha256": "s", "bytes": 1}}'),
            row(13, "retired", "a"),
            row(14, "refusal", "x", "c", reason="recall fell"),
            row(15, "evaluation", "never committed"),
        ],
        after=tree(),
    )
    assert state.get("c").metrics == {"recall": 0.5}
    assert state.get("c").artifacts["bank"].path == "p"
    assert state.get("a").retired
    assert state.refusals[0].version_id == "x"
    assert not state.is_committed("x")


def test_errors_say_what_to_do() -> None:
    with pytest.raises(UnknownVersion, match="'v9' is not in this store"):
        tree().get("v9")
    with pytest.raises(NoVersionYet, match="commit the initial model"):
        _ = VersionTree().head
