"""Killed at every named point, run again: nothing lost, nothing twice, nothing phantom, whole shards or none."""

import multiprocessing
import signal
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stream_odml.gallery.crashpoints import CRASH_POINTS, crash_point
from stream_odml.gallery.errors import NotAStreamRoot
from stream_odml.gallery.snapshot import GallerySnapshot
from stream_odml.gallery.store import Store
from tests.gallery import crash_scenario
from tests.gallery.crash_scenario import ITEMS

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.gallery.crash_scenario"])
LATER = (
    "ingest.after_gallery:2",
    "stage.after_gallery:2",
    "stage.after_versions:2",
    "attempt.after:2",
    "close.after:2",
    "file.before_rename:4",
    "head.after_versions:2",
)


def killed_at(root: str, point: str) -> bool:
    process = SERVER.Process(target=crash_scenario.run, args=(root, point))
    process.start()
    process.join(60)
    assert process.exitcode in (0, -signal.SIGKILL), (point, process.exitcode)
    return process.exitcode != 0


def check_whole_shards(root: str) -> None:
    """What a reader sees right after the crash."""
    try:
        store = Store.open(root)
    except NotAStreamRoot:
        return
    indexed = {s.shard_id for s in store.ledger.shards.values() if s.txn}
    tier1 = store.gallery_rows(vectors=False)
    seen = Counter(
        shard
        for shard, txn in zip(*(tier1[c].to_pylist() for c in ("shard_id", "txn")), strict=True)
        if txn[0] == "i"
    )
    forgotten = bool(store.ledger.tombstones)
    for shard_id in ITEMS:
        whole = len(ITEMS[shard_id]) if shard_id in indexed else 0
        assert seen[shard_id] == whole or (forgotten and 0 < seen[shard_id] < whole), shard_id


def check_finished(root: str) -> None:
    store = Store.open(root)
    state, tree = store.ledger, store.tree
    assert {s.shard_id: s.state for s in state.shards.values()} == {
        "a": "assigned",
        "b": "assigned",
        "c": "assigned",
        "d": "indexed",
        "broken": "set_aside",
    }
    assert [v.task for v in tree.versions.values()] == [None, "task-0001", "task-0002"]
    assert tree.lineage(tree.head) == list(tree.versions)
    assert state.learnt_rows == {v.version_id for v in tree.versions.values() if v.task}
    assert [r.task for r in tree.refusals] == ["task-0001"]
    assert state.tasks["task-0001"].refusals == 1
    assert store.next_task() is None
    assert sorted(store.quarantine_rows()["shard_id"].to_pylist()) == ["a", "b", "d"]
    rows = store.gallery_rows(vectors=False)
    identity = Counter(zip(*(rows[c].to_pylist() for c in ("item_id", "shard_id", "version")), strict=True))
    assert max(identity.values()) == 1
    stored = sum(len(block) for block in store.blocks.values())
    assert stored == len(rows), "an orphan was left"
    check_snapshot(GallerySnapshot.load(store))


def check_snapshot(snapshot: GallerySnapshot) -> None:
    expected = {item.item_id for items in ITEMS.values() for item in items if item.class_name != "class 1"}
    found = [snapshot.item(int(row)) for row in snapshot.rows()]
    assert sorted(hit.item_id for hit in found) == sorted(expected)
    learnt_by = dict(zip("abc", [snapshot.tree.lineage(snapshot.version)[i] for i in (1, 2, 2)], strict=True))
    for hit in found:
        assert hit.version == learnt_by.get(hit.shard_id, hit.version)
        if hit.shard_id in ("b", "c"):
            vector = crash_scenario.raw(hit.shard_id, hit.version)[int(hit.item_id[2:])]
            np.testing.assert_allclose(
                snapshot.vectors(np.array([hit.row]))[0], vector / np.linalg.norm(vector), atol=1e-5
            )


@pytest.mark.parametrize("chain", range(3))
def test_killed_at_one_point_after_the_other(chain: int, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    for point in CRASH_POINTS[chain::3]:
        assert killed_at(root, point), f"the scenario does not pass {point} any more"
        check_whole_shards(root)
    assert not killed_at(root, "")
    check_finished(root)


@pytest.mark.slow
@pytest.mark.parametrize("point", [*CRASH_POINTS, *LATER])
def test_killed_twice_at(point: str, tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    assert killed_at(root, point), f"the scenario never passes {point}"
    check_whole_shards(root)
    killed_at(root, point)  # once more on the way to recovery, where the scenario passes there again
    check_whole_shards(root)
    assert not killed_at(root, "")
    check_finished(root)


def test_a_run_without_a_crash_and_its_repetition(tmp_path: Path) -> None:
    root = str(tmp_path / "root")
    for _ in range(2):
        assert not killed_at(root, "")
        check_finished(root)


def test_a_point_that_no_test_walks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAM_ODML_CRASH_AT", "ingest.before")
    with pytest.raises(ValueError, match="not in CRASH_POINTS"):
        crash_point("somewhere.else")
