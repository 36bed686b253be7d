"""Ctrl-C in the middle of a stage: everything ends, nothing stays, and the same command goes on."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tests.faults.harness import StreamProcess, descendants, land_shards, open_store, small_config
from tests.faults.oracle import violations

pytestmark = pytest.mark.ray


def test_an_interrupt_ends_cleanly_and_the_stream_goes_on(tmp_path: Path) -> None:
    root = tmp_path / "root"
    learning = {"base_steps": 400, "stage_steps": 10, "classes_per_batch": 8, "images_per_class": 2}
    config = small_config(root, learning=learning)
    landed = land_shards(root, 3)
    with StreamProcess(config) as stream:
        stream.until(lambda: any((root / "progress").rglob("progress.safetensors")))
        below = list(descendants(stream.pid))
        stream.interrupt()
        assert stream.wait(timeout_s=60) == 0, stream.tail()
        assert [pid for pid in below if Path(f"/proc/{pid}").exists()] == []
        assert list(Path(tempfile.gettempdir()).glob(f"odml-{stream.pid}-*")) == []
    interrupted = open_store(root)
    assert interrupted.tree.head == interrupted.tree.root, "the stage was not finished"
    with StreamProcess(config) as stream:
        assert stream.wait() == 0, stream.tail()
    assert violations(open_store(root), landed, learnt_shards=3) == []
