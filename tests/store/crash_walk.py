"""The walk over all crash points: killed at one, looked at, killed there again, finished, looked at.

Nothing of it needs the disk to be durable (a SIGKILL loses no page cache), so it may run in memory.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from deltalake import DeltaTable

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import HeadSettings, solve_head
from stream_odml.learn.feature_codes import encode
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.storage.crashpoints import CRASH_POINTS
from stream_odml.store.artifacts import BANK
from stream_odml.store.errors import NotAStreamRoot
from stream_odml.store.store import Store
from stream_odml.store.tables import Form
from tests.killed import SERVER, is_killed
from tests.store import crash_scenario
from tests.store.crash_scenario import ITEMS
from tests.store.world import drift_pair

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
EXACT = (
    "root.before_versions",
    "artifact.after:7",
    "artifact.after:9",
    "stage.before:2",
    "stage.after_gallery:2",
    "stage.after_versions:2",
    "head.after_versions",
    "forget.after",
    "artifact.after:11",
    "replace.before_versions",
    "replace.after_versions",
    "maintain.after_purge",
    "maintain.after_artifacts",
)
"""Of a root in exact form: where sums and heads are made, committed and replaced."""
HALVES = (
    "artifact.after:9",
    "stage.after_gallery:2",
    "stage.after_versions:2",
    "replace.before_versions",
    "replace.after_versions",
    "maintain.after_purge",
)
"""Points of it that leave a commit of several tables half done; a chain of single kills passes all others."""


def walk(
    points: Sequence[str] = POINTS, at_once: int | None = None, form: Form = "embedding"
) -> Iterator[tuple[str, str]]:
    """(point, why it failed or nothing) for each of ``points``, ``at_once`` of them at a time (the cores)."""
    SERVER.Process(target=int).start()  # the server itself, before threads ask for it
    with ThreadPoolExecutor(at_once or len(os.sched_getaffinity(0))) as pool:
        yield from zip(points, pool.map(partial(_killed_twice, form), points), strict=True)


def _killed_twice(form: Form, point: str) -> str:
    with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
        try:
            kill_twice_at(point, f"{folder}/root", form)
        except AssertionError as error:
            return str(error) or f"{type(error).__name__} at {point}"
    return ""


def memory_folder() -> str | None:
    """A folder in memory where there is one."""
    return "/dev/shm" if Path("/dev/shm").is_dir() and os.access("/dev/shm", os.W_OK) else None


def kill_twice_at(point: str, root: str, form: Form = "embedding") -> None:
    """Kill at a point, and once more there on the way to recovery; then let it finish. Raises AssertionError."""
    assert killed_at(root, point, form), f"the scenario never passes {point}"
    check_whole_shards(root)
    killed_at(root, point, form)  # where the scenario passes there again
    check_whole_shards(root)
    assert not killed_at(root, "", form)
    check_finished(root)


def killed_at(root: str, point: str, form: Form = "embedding") -> bool:
    """Run the scenario in a process of its own; whether it died at ``point``."""
    return is_killed(crash_scenario.run, root, form, point=point)


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
    _check_snapshot(GallerySnapshot.load(store), store.form)
    if store.form == "exact":
        _check_sums(store)
    else:
        banks = [
            ClassBank.from_bytes(store.artifact(v.version_id, BANK)) for v in tree.versions.values() if v.task
        ]
        assert all("class 1" not in bank.names and len(bank) for bank in banks)


def _check_sums(store: Store) -> None:
    """Of each version: what it learnt and was not forgotten, once."""
    forward, _ = drift_pair(1)
    first = store.tree.root or ""
    parts = []
    for shard in "abc":
        h = encode(crash_scenario.raw(shard, "v0001" if shard == "a" else first).astype(np.float32)).decode()
        moved = h if shard == "a" else h.astype(np.float64) @ forward.A.T + forward.b
        kept = [i for i, item in enumerate(ITEMS[shard]) if item.class_name != "class 1"]
        names = [ITEMS[shard][i].class_name for i in kept]
        parts.append(ClassSums.of(crash_scenario.LIFT, encode(moved[kept]), names))
    for version, learnt in zip(store.tree.versions, (0, 1, 3), strict=True):
        sums, wanted = store.sums_of(version), ClassSums.empty(crash_scenario.LIFT).plus(*parts[:learnt])
        assert sums is not None
        assert sums.equals(wanted), version
        assert store.head_of(version).equals(solve_head(wanted, HeadSettings(dim=2))), version


def _check_snapshot(snapshot: GallerySnapshot, form: Form) -> None:
    expected = {item.item_id for items in ITEMS.values() for item in items if item.class_name != "class 1"}
    found = [snapshot.item(int(row)) for row in snapshot.rows()]
    assert sorted(hit.item_id for hit in found) == sorted(expected)
    rows_of = "abc" if form == "embedding" else "a"  # a new head alone adds no row
    line = snapshot.tree.lineage(snapshot.version)
    learnt_by = dict(zip(rows_of, [line[1], line[2], line[2]], strict=False))
    for hit in found:
        assert hit.version == learnt_by.get(hit.shard_id, hit.version)
        if hit.shard_id in ("b", "c") and form == "embedding":
            vector = crash_scenario.raw(hit.shard_id, hit.version)[int(hit.item_id[2:])]
            np.testing.assert_allclose(
                snapshot.vectors(np.array([hit.row]))[0], vector / np.linalg.norm(vector), atol=1e-5
            )
