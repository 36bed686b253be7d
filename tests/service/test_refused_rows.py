"""The newest rows of the quarantine, as a replica lists them."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np

from stream_odml.ingest.reasons import REMEDIES, Reason
from stream_odml.service.refused_rows import RefusedRows
from stream_odml.storage.files import open_files
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
    writer.commit_ingest(IngestBatch([shard_id], good, bad))


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
