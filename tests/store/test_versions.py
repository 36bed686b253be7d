"""The version tree and the maps along it, against walking and mapping by hand."""

import itertools
import weakref
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from stream_odml.learn.drift import AffineMap, DriftMap
from stream_odml.store.artifacts import FORWARD
from stream_odml.store.errors import NoVersionYet, UnknownVersion
from stream_odml.store.mapping import ASKED_KEPT, HEADS_KEPT, WAYPOINTS, Mapper
from stream_odml.store.versions import VersionTree
from tests.store.world import Twin, drift_pair

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


@pytest.mark.parametrize("end", PARENTS)
def test_maps_from_all_versions_at_once_and_to_all_are_those_of_one_by_one(end: str) -> None:
    naive, vectors = twin(), np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)

    def load(version: str, name: str) -> DriftMap:
        return naive.drifts[version][0 if name == FORWARD else 1]

    mapper = Mapper(load)
    into, out_of = dict(mapper.into(tree(), PARENTS, end)), mapper.out_of(tree(), end, PARENTS)
    assert set(into) == set(out_of) == set(PARENTS)
    for name in PARENTS:
        there = [naive.moved(v.astype(float), name, end) for v in vectors]
        back = [naive.moved(v.astype(float), end, name) for v in vectors]
        np.testing.assert_allclose(into[name].apply(vectors), there, atol=1e-5)
        np.testing.assert_allclose(out_of[name].apply(vectors), back, atol=1e-5)
    with pytest.raises(UnknownVersion, match="'v9'"):
        list(mapper.into(tree(), ["a", "v9"], end))


def line(length: int) -> VersionTree:
    """v0 - v1 - ... - v<length>, which is the head."""
    rows = [row(0, "version", "v0")]
    rows += [row(i, "version", f"v{i}", f"v{i - 1}") for i in range(1, length + 1)]
    return VersionTree.replay([*rows, row(2 * length, "head", f"v{length}")])


def test_a_mapper_holds_few_maps_however_many_versions_there_are() -> None:
    """Weak references see every map that it loaded or composed."""
    alive: weakref.WeakSet[AffineMap] = weakref.WeakSet()
    loads = 0

    def load(version: str, name: str) -> DriftMap:
        nonlocal loads
        loads += 1
        made = AffineMap(np.eye(2), np.ones(2))
        alive.add(made)
        return made

    mapper = Mapper(load)
    for length in range(1, 300):
        for _, drift in mapper.into(line(length), [f"v{i}" for i in range(length)], f"v{length}"):
            if isinstance(drift, AffineMap):
                alive.add(drift)
        assert (
            mapper.get(line(length), "v0", f"v{length}").apply(np.zeros((1, 2), np.float32))[0, 0] == length
        )
        assert mapper.at_hand("v0", f"v{length}")
    del drift
    assert len(alive) <= HEADS_KEPT * (WAYPOINTS + ASKED_KEPT)
    # What was asked for is at hand under the next head; what was not is part of the way from something that is.
    before = loads
    assert isinstance(mapper.get(line(299), "v0", "v299"), AffineMap)
    assert loads == before
    assert not mapper.at_hand("v77", "v299")
    mapper.get(line(299), "v77", "v299")
    assert before < loads <= before + -(-299 // WAYPOINTS)
    for i in range(ASKED_KEPT):  # and room is made by what was not asked for lately
        mapper.get(line(299), f"v{80 + i}", "v299")
    assert not mapper.at_hand("v77", "v299")


def test_a_thousand_affine_stages_are_one_matrix_and_keep_their_precision() -> None:
    deep = line(1000)
    pair = drift_pair(3)

    def load(version: str, name: str) -> DriftMap:  # there and back again: even stages undo the odd ones
        return pair[int(version[1:]) % 2]

    vectors = np.random.default_rng(1).normal(size=(4, 6)).astype(np.float32)
    drift = Mapper(load).get(deep, "v0", "v1000")
    assert isinstance(drift, AffineMap)
    np.testing.assert_allclose(drift.apply(vectors), vectors, atol=1e-4)


def test_learnt_tasks_follow_the_head() -> None:
    state = tree()
    assert state.learnt() == {"t root", "t a", "t b", "t c"}
    back = VersionTree.replay([row(11, "head", "d", reason="rollback")], after=state)
    assert back.head == "d"
    assert state.learnt() - back.learnt() == {"t b", "t c"}
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
    assert "x" not in state.versions


def test_errors_say_what_to_do() -> None:
    with pytest.raises(UnknownVersion, match="'v9' is not in this store"):
        tree().get("v9")
    with pytest.raises(NoVersionYet, match="commit the initial model"):
        _ = VersionTree().head
