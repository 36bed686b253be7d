"""kill -9 of everything at named moments; the same command again; the oracle."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.harness import StreamProcess, land_shards, open_store, small_config, writer_died
from tests.faults.oracle import violations

pytestmark = pytest.mark.ray
SHARDS = 6


@pytest.mark.parametrize("point", ["ingest.after_gallery", "stage.after_gallery", "stage.after_versions"])
def test_commits_survive_a_kill_of_the_whole_tree(tmp_path: Path, point: str) -> None:
    root = tmp_path / "root"
    config = small_config(root)
    landed = land_shards(root, SHARDS)
    with StreamProcess(config, crash_at=point) as stream:
        stream.until(writer_died(root))
        stream.kill_tree()
    with StreamProcess(config) as stream:
        assert stream.wait() == 0, stream.tail()
    assert violations(open_store(root), landed, learnt_shards=SHARDS) == []


def test_a_stage_killed_midway_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "root"
    config = small_config(root, learning={"base_steps": 150, "stage_steps": 10, "classes_per_batch": 8})
    landed = land_shards(root, SHARDS)
    with StreamProcess(config) as stream:
        stream.until(lambda: any((root / "progress").rglob("progress.safetensors")))
        stream.kill_tree()
        attempt = next(iter(open_store(root).ledger.tasks.values())).attempts
    with StreamProcess(config) as stream:
        assert stream.wait() == 0, stream.tail()
    store = open_store(root)
    assert violations(store, landed, learnt_shards=SHARDS) == []
    assert attempt[0].version_id in store.tree.versions, "the interrupted attempt itself was finished"
