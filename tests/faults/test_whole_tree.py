"""A stream ended at the worst moments, each time started again by the same command; then the oracle."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.faults.harness import (
    StreamProcess,
    descendants,
    land_shards,
    open_store,
    small_config,
    survivors,
    writer_died,
)
from tests.faults.oracle import violations

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]
SHARDS = 6


def test_kills_of_the_whole_tree_between_the_rows_of_a_commit(tmp_path: Path) -> None:
    """SIGKILL of everything in the middle of a tier-1 commit, before a stage's commit point, and after it."""
    root = tmp_path / "root"
    config = small_config(root)
    landed = land_shards(root, SHARDS)
    for point in ("ingest.after_gallery", "stage.after_gallery", "stage.after_versions"):
        with StreamProcess(config, crash_at=point) as stream:
            stream.until(writer_died(root))
            stream.kill_tree()
    with StreamProcess(config) as stream:
        assert stream.wait() == 0, stream.tail()
    assert violations(open_store(root), landed, learnt_shards=SHARDS) == []


def test_a_stage_ended_midway_goes_on(tmp_path: Path) -> None:
    """First by SIGKILL of everything, then by Ctrl-C: the attempt goes on from its last record and is finished."""
    root = tmp_path / "root"
    learning = {"base_steps": 400, "stage_steps": 10, "classes_per_batch": 8, "images_per_class": 2}
    config = small_config(root, learning=learning)
    landed = land_shards(root, SHARDS)

    def records() -> set[Path]:
        return set((root / "progress").rglob("progress.safetensors"))

    with StreamProcess(config) as stream:
        stream.until(lambda: bool(records()))
        stream.kill_tree()
    before = records()
    attempt = next(iter(open_store(root).ledger.tasks.values())).attempts[0].version_id
    with StreamProcess(config) as stream:
        stream.until(lambda: bool(records() - before))
        below = list(descendants(stream.pid))
        stream.interrupt()
        assert stream.wait(timeout_s=60) == 0, stream.tail()
        assert survivors(below, within_s=10) == []
        assert list(Path(tempfile.gettempdir()).glob(f"odml-{stream.pid}-*")) == []
    interrupted = open_store(root)
    assert interrupted.tree.head == interrupted.tree.root, "the stage is not finished yet"
    with StreamProcess(config) as stream:
        assert stream.wait() == 0, stream.tail()
    store = open_store(root)
    assert violations(store, landed, learnt_shards=SHARDS) == []
    assert attempt in store.tree.versions, "the attempt that was killed is the one that was finished"
