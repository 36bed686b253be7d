"""The wall clock of every process of a stream is set back by two hours: it says so, ends, and goes on when started."""

from __future__ import annotations

from pathlib import Path

import pytest

from stream_odml.store.store import Store
from tests.faults.environment import JUMP_S, build_shim, shimmed
from tests.faults.harness import StreamProcess, land_shards, open_store, small_config
from tests.faults.oracle import violations
from tests.faults.truth import Truth

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]


def indexed(root: Path) -> int:
    """Shards that are searchable; none before there is a root."""
    if not (root / "endpoints.json").exists():
        return 0
    return sum(s.indexed_seq is not None for s in Store.open(str(root)).ledger.shards.values())


def test_a_clock_that_goes_back_ends_the_stream_with_a_message(tmp_path: Path) -> None:
    shim = build_shim(tmp_path)
    if shim is None:
        pytest.skip("NOT CHECKED: no C compiler")
    root, truth = tmp_path / "root", Truth()
    config = small_config(root)
    truth.tried |= land_shards(root, 2)
    with StreamProcess(config, idle_s=600, environment=shimmed(shim)) as stream:
        stream.until(lambda: indexed(root) == 2)
        (shim.with_name("shim") / "clock").write_text(str(JUMP_S))
        truth.tried |= land_shards(root, 1, first=2)
        stream.until(lambda: indexed(root) == 3)  # forward harms nobody
        (shim.with_name("shim") / "clock").write_text("0")
        assert stream.wait(240) == 1
        assert f"the wall clock was set back by {JUMP_S} s" in " ".join(stream.output.read_text().split())
    truth.tried |= land_shards(root, 3, first=3)
    with StreamProcess(config) as stream:
        assert stream.wait(240) == 0, stream.tail()
    store = open_store(root)
    assert violations(store, truth) == []
    assert len(store.tree.learnt()) == 2
