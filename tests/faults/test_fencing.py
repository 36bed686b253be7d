"""One writer: a second run is told so, and a writer that slept while another took over commits nothing more."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from stream_odml.store.lease import read_lease
from stream_odml.store.store import Store
from stream_odml.store.table import Table
from tests.faults.harness import land_shards, small_config
from tests.faults.oracle import violations
from tests.faults.process import StreamProcess, is_running, send
from tests.faults.roles import cast_of
from tests.faults.truth import Truth
from tests.faults.watch import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
LEASE_S = 3.0


def ledger_rows(root: Path) -> list[dict[str, Any]]:
    """All rows in order."""
    table = Table(Store.open(str(root)).files, "ledger")
    table.refresh()
    rows = [row for path in table.present for row in table.read(path).to_pylist()]
    return sorted(rows, key=lambda row: int(row["seq"]))


def test_a_sleeping_writer_is_replaced_and_commits_nothing_more(tmp_path: Path) -> None:
    """SIGSTOP of the driver until its lease is over; a second run is refused before, takes over after; SIGCONT."""
    root = tmp_path / "root"
    config = small_config(root, store={"lease_s": LEASE_S}, boundary={"new_classes": 1000})
    truth = Truth()
    truth.tried |= land_shards(root, 1)
    with StreamProcess(config) as old:
        old.until(lambda: (root / "endpoints.json").exists())
        (driver,) = cast_of(old.pid)["driver"]
        second = tmp_path / "second.yaml"
        second.write_text(config.read_text())  # its output goes to a log of its own
        with StreamProcess(second) as refused:
            assert refused.wait(240) == 1
            assert f"in use by 'stream faults' (process {driver})" in " ".join(refused.tail().split())
        send(driver, signal.SIGSTOP)
        assert wait_for(lambda: not lease_of(root).alive(), 3 * LEASE_S) is not None
        truth.tried |= land_shards(root, 2, first=1)
        with StreamProcess(second, "--until-idle", "3") as new:
            new.until(lambda: indexed(root) == 3)
            send(driver, signal.SIGCONT)
            assert wait_for(lambda: not is_running(driver), 240) is not None, "the zombie lives"
            truth.tried |= land_shards(root, 1, first=3)
            assert old.wait(240) == 1
            assert "another run takes the stream root over" in " ".join(old.output.read_text().split())
            assert new.wait(240) == 0, new.tail()
    assert indexed(root) == 4
    assert violations(Store.open(str(root)), truth, final=True, learnt=False) == []
    epochs = [int(row["epoch"]) for row in ledger_rows(root)]
    assert epochs == sorted(epochs), "rows of a writer of the past came after its successor's"


def lease_of(root: Path) -> Any:
    """The lease as it is now."""
    return read_lease(Store.open(str(root)).files)


def indexed(root: Path) -> int:
    """Shards that are searchable."""
    return sum(shard.indexed_seq is not None for shard in Store.open(str(root)).ledger.shards.values())
