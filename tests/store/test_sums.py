"""Sums and heads of a root in exact form: what is erased or replaced leaves them as if it had never been there."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import solve_head
from stream_odml.learn.drift import AffineMap, IdentityMap
from stream_odml.learn.feature_codes import encode
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.store import versions
from stream_odml.store.artifacts import HEAD, STUDENT, SUMS
from stream_odml.store.backup import back_up
from stream_odml.store.errors import StaleParent
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import Store
from stream_odml.store.sums import forget_in_sums, learnt_rows, sums_now, task_rows
from stream_odml.store.versions import SUMS_SEQ
from stream_odml.store.writer import Writer
from tests.store.exact_world import LIFT, SETTINGS, D, exact_root, fast_stage, land, new_trunk
from tests.store.world import Floats, Item, drift_pair

NOW = MaintenancePolicy(compact_files=2, retention=timedelta(0), orphan_age=timedelta(0))
BASE = [Item("a0", "oak"), Item("a1", "oak"), Item("a2", "oak"), Item("a3", "elm"), Item("a4", "elm")]
SECOND = [Item("b0", "ash"), Item("b1", "ash"), Item("b2", "fir"), Item("b3", "fir"), Item("b4", "oak")]
THIRD = [
    Item("c0", "fir"),
    Item("c1", "yew"),
    Item("c2", "yew"),
    Item("a1", "yew"),
]  # a1 replaces the one of before
Kept = list[tuple[str, Floats]]


def features(seed: int, n: int) -> Floats:
    return np.abs(np.random.default_rng(seed).normal(size=(n, D))) + 0.1


def learnt_stream(root: Path) -> Writer:
    """A new trunk on the base task, then two heads under it; the second task was indexed before the trunk was new."""
    writer = exact_root(str(root))
    land(writer, "base", BASE, features(1, 5))
    land(writer, "second", SECOND, features(2, 5), held_out=[False, False, False, True, False])
    new_trunk(writer, "task-0001", "base", BASE, features(3, 5), seed=1)
    fast_stage(writer, "task-0002", ["second"])
    land(writer, "third", THIRD, features(4, 4))
    fast_stage(writer, "task-0003", ["third"])
    return writer


def coded(h: Floats) -> Floats:
    return np.asarray(encode(h.astype(np.float32)).decode(), np.float64)


def learnt_items(depth: int) -> dict[str, tuple[str, str, Floats]]:
    """(shard, item) -> (class, item, h as stored in the learnt trunk) of training items, by a plain list."""
    forward, _ = drift_pair(1, D)
    found = {}
    parts = [("base", BASE, coded(features(3, 5)))]
    parts += [("second", SECOND, coded(features(2, 5)) @ forward.A.T + forward.b)]
    parts += [("third", THIRD, coded(features(4, 4)))]
    for shard, items, h in parts[:depth]:
        for item, vector in zip(items, h, strict=True):
            if item.item_id != "b3":  # held out
                found[f"{shard}/{item.item_id}"] = (item.class_name, item.item_id, vector)
    return found


def oracle(depth: int, gone: set[str]) -> ClassSums:
    kept = [(name, h) for key, (name, _, h) in sorted(learnt_items(depth).items()) if key not in gone]
    h_nD = np.array([h for _, h in kept]).astype(np.float64)
    return ClassSums.of(LIFT, encode(h_nD), [name for name, _ in kept])


def same(ours: ClassSums, other: ClassSums) -> None:
    assert ours.names == other.names
    np.testing.assert_array_equal(ours.counts_C, other.counts_C)
    np.testing.assert_array_equal(ours.sums_CE, other.sums_CE)
    np.testing.assert_array_equal(ours.products_EE, other.products_EE)


def check(store: Store, gone: set[str], replaced: bool = True) -> None:
    """Sums and heads of all versions are those of streams that never saw what is gone."""
    learnt = [v for v in store.tree.versions.values() if v.parent is not None]
    for depth, version in enumerate(learnt, 1):
        wanted = oracle(depth, gone | ({"base/a1"} if replaced else set()))
        sums, head = store.sums_of(version.version_id), store.head_of(version.version_id)
        assert sums is not None
        same(sums, wanted)
        never = solve_head(wanted, SETTINGS)
        assert head.names == never.names
        np.testing.assert_allclose(head.known_dE, never.known_dE, atol=1e-6)
        np.testing.assert_allclose(head.new_DD, never.new_DD, atol=1e-6)
        same(learnt_rows(store, version.version_id).sums(LIFT), wanted)


def test_sums_are_of_what_is_stored(tmp_path: Path) -> None:
    writer = learnt_stream(tmp_path / "root")
    store = writer.store
    v0, v1, v2, v3 = store.tree.versions
    assert store.tree.same_trunk(v1, v3)
    assert not store.tree.same_trunk(v0, v1)
    assert isinstance(store.mapper.get(store.tree, v3, v1), IdentityMap)
    assert isinstance(store.mapper.get(store.tree, v0, v3), AffineMap)
    assert len(store.gallery_rows()) == 5 + 5 + 5 + 4  # heads add no row
    for version, depth in ((v1, 1), (v2, 2), (v3, 3)):
        same(sums_now(store, version), oracle(depth, {"base/a1"}))
        same(learnt_rows(store, version).sums(LIFT), oracle(depth, {"base/a1"}))
    rows = task_rows(store, v1, ["second"])
    assert sorted(zip(rows.keys, rows.classes, strict=True)) == [
        ("b0", "ash"),
        ("b1", "ash"),
        ("b2", "fir"),
        ("b4", "oak"),
    ]
    whole, some = rows.features(), rows.features(np.array([1, 3]))
    np.testing.assert_array_equal(some.codes_nD, whole.codes_nD[[1, 3]])
    np.testing.assert_array_equal(rows.features(np.array([], np.int64)).codes_nD, np.empty((0, D), np.int8))
    assert len(task_rows(store, v1, ["nothing"])) == 0
    writer.release()


@pytest.mark.parametrize("kind", ["class", "item", "shard", "replaced"])
def test_what_is_gone_was_never_learnt(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "root"
    writer = learnt_stream(root)
    everything = learnt_items(3)
    name = {"class": "oak", "item": "b1", "shard": "second", "replaced": ""}[kind]
    gone = {
        key
        for key, (class_name, item, _) in everything.items()
        if name in (class_name, item, key.partition("/")[0])
    }
    if name:
        writer.forget(kind, name)  # type: ignore[arg-type]
    before = writer.store.gallery_rows()
    assert writer.maintain(NOW).rows_purged == 0  # what sums count still is not deleted
    assert len(writer.store.gallery_rows()) == len(before)
    for version in list(writer.tree.versions)[1:]:
        same(sums_now(writer.store, version), oracle(writer.tree.get(version).depth, gone | {"base/a1"}))
    student = writer.tree.get(writer.tree.head).artifacts[STUDENT]
    assert forget_in_sums(writer) == 4
    check(writer.store, gone)
    assert forget_in_sums(writer) == 0  # repeated, as after a crash, it takes nothing out twice
    assert writer.maintain(NOW).rows_purged > 0
    check(writer.store, gone)
    check(Store.open(str(root)), gone)
    assert forget_in_sums(writer) == 0
    assert writer.store.files.exists(student.path)
    named = {ref.path for v in writer.tree.versions.values() for ref in v.artifacts.values()}
    assert {info.path for info in writer.store.files.list("artifacts")} == named  # nothing of before is left
    assert writer.tree.get(writer.tree.head).artifacts[STUDENT] == student

    land(writer, "fourth", [Item("d0", "oak"), Item("d1", "oak")], features(9, 2))
    latest = fast_stage(writer, "task-0004", ["fourth"])
    sums = writer.store.sums_of(latest)
    assert sums is not None
    same(sums, learnt_rows(writer.store, latest).sums(LIFT))
    writer.release()


def test_the_proof_recomputes_sums_and_heads(tmp_path: Path) -> None:
    root = tmp_path / "root"
    writer = learnt_stream(root)
    writer.forget("class", "oak")

    def left() -> list[str]:
        found = verify_forgotten(str(root), "class", "oak").findings
        return [line.partition(": ")[2] for line in found if line.startswith("artifacts/")]

    versions = list(writer.tree.versions)
    assert left() == [f"statistics of version {name}" for name in versions]
    forget_in_sums(writer)
    writer.maintain(NOW)
    assert verify_forgotten(str(root), "class", "oak").findings == []
    # As a fault would leave them: one item too many, and a head of it.
    sums = writer.store.sums_of(versions[2])
    assert sums is not None
    more = sums.plus(ClassSums.of(LIFT, encode(np.ones((1, D), np.float32)), ["ash"]))
    writer.replace_artifact(versions[2], SUMS, more.to_bytes(), "test")
    writer.replace_artifact(versions[3], HEAD, solve_head(more, SETTINGS).to_bytes(), "test")
    assert left() == [
        f"sums of version {versions[2]} that are not those of what is stored",
        f"a head of version {versions[3]} that is not that of its sums",
    ]
    writer.release()


def test_a_replaced_row_stays_until_sums_are_without_it(tmp_path: Path) -> None:
    """Also where what replaced it is erased in the meantime: it must not come back."""
    writer = learnt_stream(tmp_path / "root")
    writer.forget("class", "yew")
    assert writer.maintain(NOW).rows_purged == 0
    assert forget_in_sums(writer) == 4
    writer.maintain(NOW)
    left = writer.store.gallery_rows()["item_id"].to_pylist()
    assert "a1" not in left
    assert not {"c1", "c2"} & set(left)
    writer.release()


def test_a_stage_from_sums_of_before_is_refused(tmp_path: Path) -> None:
    writer = learnt_stream(tmp_path / "root")
    land(writer, "fourth", [Item("d0", "oak"), Item("d1", "pine")], features(9, 2))
    writer.close_task("task-0004", ["fourth"], "test")
    version, parent, before = writer.begin_attempt("task-0004"), writer.tree.head, writer.ledger.seq
    sums = sums_now(writer.store, parent)
    data = {HEAD: solve_head(sums, SETTINGS).to_bytes(), SUMS: sums.to_bytes()}
    refs = {name: writer.put_artifact(version, name, part) for name, part in data.items()}
    refs[STUDENT] = writer.tree.get(parent).artifacts[STUDENT]
    writer.forget("class", "oak")
    forget_in_sums(writer)
    with pytest.raises(ValueError, match=r"as of row \d+ of the ledger.*sum and solve them again"):
        writer.commit_stage(version, parent, "task-0004", refs, metrics={SUMS_SEQ: before})
    writer.move_head(list(writer.tree.versions)[1], "back")
    with pytest.raises(StaleParent):
        writer.commit_stage(version, parent, "task-0004", refs, metrics={SUMS_SEQ: writer.ledger.seq})
    without = {name: ref for name, ref in refs.items() if name != STUDENT}
    other = {**without, STUDENT: writer.put_artifact(version, STUDENT, b"another trunk")}
    writer.move_head(parent, "forward")
    with pytest.raises(ValueError, match="lacks artifacts"):
        writer.commit_stage(version, parent, "task-0004", other, metrics={SUMS_SEQ: writer.ledger.seq})
    writer.release()


def test_a_kept_version_keeps_the_trunk_that_a_retired_one_brought(tmp_path: Path) -> None:
    writer = learnt_stream(tmp_path / "root")
    v1, head = list(writer.tree.versions)[1], writer.tree.head
    policy = MaintenancePolicy(keep_versions=1, retention=timedelta(0), orphan_age=timedelta(0))
    assert writer.maintain(policy).versions_retired == 3
    assert writer.store.artifact(head, STUDENT) == b"trunk 1"
    assert not writer.store.files.exists(writer.tree.get(v1).artifacts[SUMS].path)
    writer.forget("class", "oak")
    assert forget_in_sums(writer) == 1
    writer.maintain(policy)
    assert writer.store.artifact(head, STUDENT) == b"trunk 1"
    same(sums_now(writer.store, head), oracle(3, {"base/a0", "base/a1", "base/a2", "second/b4"}))
    writer.release()


def test_heads_outlive_their_models_for_a_while_and_until_something_is_erased(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = learnt_stream(tmp_path / "root")
    names = list(writer.tree.versions)
    policy = MaintenancePolicy(keep_versions=1, retention=timedelta(0), orphan_age=timedelta(0))

    def readable() -> list[bool]:
        writer.maintain(policy)
        paths = (writer.tree.get(name).artifacts[HEAD].path for name in names)
        there = [writer.store.files.exists(path) for path in paths]
        assert there == [writer.tree.keeps_head(name) for name in names]
        return there

    assert readable() == [True] * 4
    assert back_up(str(tmp_path / "root"), str(tmp_path / "copy")).head == names[-1]
    assert Store.open(str(tmp_path / "copy")).head_of(names[1]).known_dim
    monkeypatch.setattr(versions, "KEPT_HEADS", 3)
    assert readable() == [False, True, True, True]
    writer.forget("item", "a0")
    assert forget_in_sums(writer) == 1
    assert readable() == [False, False, False, True], "what cannot be solved again goes"
    writer.release()
