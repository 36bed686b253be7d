"""The newest rows of the quarantine, as a replica lists them."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from stream_odml.ingest.reasons import REMEDIES, Reason
from stream_odml.service import refused_rows as module
from stream_odml.service.refused_rows import RefusedRows
from stream_odml.storage.files import open_files
from stream_odml.store.ledger import LedgerState
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.table import Table
from stream_odml.store.tables import quarantine_rows
from stream_odml.store.writer import IngestBatch, Writer
from tests.store.world import Item, Shard, make_rows, new_root


def refuse(writer: Writer, shard_id: str, *rows: int) -> None:
    """Land a shard of one good row and these bad ones."""
    writer.record_landed([Shard(shard_id)])
    good = make_rows(shard_id, [Item(shard_id, "cat")], np.ones((1, writer.store.dim)), writer.tree.head)
    bad = quarantine_rows((shard_id, row, "empty_image", "a.jpg: no bytes", b"") for row in rows)
    counts = {shard_id: {"rows": 1, "reasons": {"empty_image": len(rows)}}}
    writer.commit_ingest(IngestBatch([shard_id], good, bad, counts=counts))


def test_the_newest_come_first_and_no_more_than_asked_for(tmp_path: Path) -> None:
    writer = new_root(str(tmp_path))
    refused = RefusedRows(lambda: Table(open_files(str(tmp_path)), "quarantine"))

    def newest(limit: int = 10) -> list[tuple[str, int]]:
        found = refused.newest(writer.ledger, writer.tree, limit)
        assert all(
            row.remedy == REMEDIES[Reason.EMPTY_IMAGE] and row.detail == "a.jpg: no bytes" for row in found
        )
        return [(row.shard, row.row) for row in found]

    assert newest() == []
    refuse(writer, "a", 1, 2)
    assert newest() == [("a", 1), ("a", 2)]
    refuse(writer, "b", 3)
    before = writer.ledger
    refuse(writer, "c", 4)
    assert newest() == [("c", 4), ("b", 3), ("a", 1), ("a", 2)]
    assert newest(2) == [("c", 4), ("b", 3)]
    assert [row.shard for row in refused.newest(before, writer.tree, 1)] == [
        "b"
    ]  # not what a later commit shows
    now = timedelta(0)
    writer.maintain(
        MaintenancePolicy(compact_files=2, retention=now, orphan_age=now)
    )  # one file, and the others gone
    assert newest() == [("c", 4), ("b", 3), ("a", 1), ("a", 2)]
    writer.forget("shard", "b", 1)
    assert newest() == [("c", 4), ("a", 1), ("a", 2)]
    writer.release()


def test_who_counts_them_waits_no_longer_for_a_store_that_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`status` was not answered: counts are read once something was erased."""
    monkeypatch.setattr(module, "COUNT_WAIT_S", 0.2)
    writer = new_root(str(tmp_path))
    table = Table(open_files(str(tmp_path)), "quarantine")
    refused = RefusedRows(lambda: table)
    answers, count, counted, ended = threading.Event(), asyncio.to_thread, [], []
    answers.set()

    def hang(call: Callable[..., dict[str, int]], ledger: LedgerState) -> dict[str, int]:
        answers.wait(60)
        return call(ledger)

    async def watched(call: Callable[..., dict[str, int]], ledger: LedgerState) -> dict[str, int]:
        counted.append(ledger)
        found = await count(hang, call, ledger)
        ended.append(ledger)
        return found

    async def until(rows: int) -> None:
        while await refused.counts(writer.ledger) != {"empty_image": rows}:
            assert time.monotonic() - began < 60

    monkeypatch.setattr(asyncio, "to_thread", watched)

    async def ask() -> None:
        await until(2)
        refuse(writer, "c", 3)
        answers.clear()
        before, asked_at = len(counted), time.monotonic()
        together = await asyncio.gather(*(refused.counts(writer.ledger) for _ in range(20)))
        assert together == [{"empty_image": 2}] * 20  # as it was
        assert time.monotonic() - asked_at < 10
        assert len(counted) == before + 1  # and one thread waits
        refuse(writer, "d", 4)
        asked = asyncio.create_task(refused.counts(writer.ledger))
        await asyncio.sleep(0)
        asked.cancel()  # a client that left
        answers.set()
        while len(ended) < len(counted):
            await asyncio.sleep(0.01)
        await refused.counts(writer.ledger)
        assert len(counted) == before + 2  # what the one that hung has found is not told as today's
        await until(4)

    began = time.monotonic()
    refuse(writer, "a", 1, 2)
    refuse(writer, "b", 1)
    writer.forget("shard", "b", 1)
    asyncio.run(ask())
    writer.release()


def test_a_store_that_fails_is_no_failure_of_whoever_counts(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def unreachable() -> Table:
        raise OSError("no route to host")

    writer = new_root(str(tmp_path))
    refuse(writer, "a", 1, 2)
    refuse(writer, "b", 1)
    writer.forget("shard", "b", 1)
    counts = asyncio.run(RefusedRows(unreachable).counts(writer.ledger))
    assert counts == {"empty_image": 3}  # all that were ever refused, until it answers
    assert "the quarantine cannot be counted now: no route to host" in caplog.text
    writer.release()
