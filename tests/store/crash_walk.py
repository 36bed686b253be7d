"""The walk over all crash points: killed at one, looked at, killed there again, finished, looked at.

Nothing of it needs the disk to be durable (a SIGKILL loses no page cache), so it may run in memory.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from deltalake import DeltaTable

from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.storage.crashpoints import CRASH_POINTS
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store
from tests.store import crash_scenario
from tests.store.crash_scenario import ITEMS

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.store.crash_scenario"])
LATER = (
    "ingest.after_gallery:2",
    "stage.after_gallery:2",
    "stage.after_versions:2",
    "attempt.after:2",
    "close.after:2",
    "file.before_rename:4",
    "head.after_versions:2",
)
POINTS = (*CRASH_POINTS, *LATER)
"""Every point, and some at a later pass, where the root is in another state."""


def walk(points: Sequence[str] = POINTS, at_once: int | None = None) -> Iterator[tuple[str, str]]:
    """(point, why it failed or nothing) for each of ``points``, ``at_once`` of them at a time (the cores)."""
    SERVER.Process(target=int).start()  # the server itself, before threads ask for it
    with ThreadPoolExecutor(at_once or len(os.sched_getaffinity(0))) as pool:
        yield from zip(points, pool.map(_killed_twice, points), strict=True)


def _killed_twice(point: str) -> str:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        try:
            kill_twice_at(point, f"{folder}/root")
        except AssertionError as error:
            return str(error) or f"{type(error).__name__} at {point}"
    return ""


def memory_folder() -> str | None:
    """A folder in memory where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK) else None


def kill_twice_at(point: str, root: str) -> None:
    """Kill at a point, and once more there on the way to recovery; then let it finish. Raises AssertionError."""
    assert killed_at(root, point), f"the scenario never passes {point}"
    check_whole_shards(root)
    killed_at(root, point)  # where the scenario passes there again
    check_whole_shards(root)
    assert not killed_at(root, "")
    check_finished(root)


def killed_at(root: str, point: str) -> bool:
    """Run the scenario in a process of its own; whether it died at ``point``."""
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
    """What must hold once the scenario has come to its end."""
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
    kinds = Counter(DeltaTable(f"{root}/ledger").to_pyarrow_table()["kind"].to_pylist())
    assert kinds["relearn"] == len(state.tasks), "a request to learn a task after all is recorded once"
    assert store.next_task() is None
    assert sorted(store.quarantine_rows()["shard_id"].to_pylist()) == ["a", "b", "d"]
    rows = store.gallery_rows(vectors=False)
    identity = Counter(zip(*(rows[c].to_pylist() for c in ("item_id", "shard_id", "version")), strict=True))
    assert max(identity.values()) == 1
    stored = sum(len(block) for block in store.blocks.values())
    assert stored == len(rows), "an orphan was left"
    _check_snapshot(GallerySnapshot.load(store))


def _check_snapshot(snapshot: GallerySnapshot) -> None:
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
