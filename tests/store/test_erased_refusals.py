"""What the quarantine says of an erased item or class goes with it, by the texts that readers really write."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client import generate_latest

from stream_odml.cli.stream_root import root_status
from stream_odml.exchange.checking import Findings, Target, check
from stream_odml.ingest.message_range import _superseded
from stream_odml.ingest.rawrow import RawRow
from stream_odml.ingest.reading import RawItem, read_shard
from stream_odml.ingest.reasons import RowProblem
from stream_odml.ingest.sources import DirectorySource
from stream_odml.pipeline.erasure_proof import verify_forgotten
from stream_odml.pipeline.figures import stream_figures
from stream_odml.pipeline.metrics import DriverMetrics
from stream_odml.pipeline.relabelling import _problem
from stream_odml.service.refused_rows import RefusedRows
from stream_odml.store.erased_refusals import erased_refusals
from stream_odml.store.housekeeping import Housekeeper
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.table import Table
from stream_odml.store.tables import quarantine_rows
from stream_odml.store.writer import IngestBatch, Writer
from tests.ingest.helpers import land_folder
from tests.service.tiny_stream import TinyStream, picture
from tests.store.world import Item, Shard, make_rows, new_root

NOW = MaintenancePolicy(retention=timedelta(0), orphan_age=timedelta(0))
LONG = "x" * 250
QUOTED = 'it\'s "x"'


def _is_erased(
    text: str, kind: str, name: str, format: str = "parquet", landed: int = 1, seq: int = 2
) -> bool:
    shard: Any = SimpleNamespace(landed_seq=landed, format=format)
    rows = pa.table({"shard_id": ["s"], "row": pa.array([7], pa.int32()), "detail": [text]})
    return bool(erased_refusals(rows, {"s": shard}, {(kind, name): seq})[0])


def _table(inbox: Path, name: str, ids: Sequence[str], class_name: str = "oak") -> None:
    inbox.mkdir(parents=True, exist_ok=True)
    images = [picture(i) for i in range(len(ids))]
    columns = {"image": images, "class_name": [class_name] * len(ids), "item_id": list(ids)}
    pq.write_table(pa.table(columns), inbox / f"{name}.parquet")


def _files(root: Path) -> bytes:
    return b"".join(str(pq.read_table(path)["detail"].to_pylist()).encode() for path in root.glob("quarantine/*.parquet"))  # fmt: skip  # noqa: E501


def test_refusals_go_with_the_item_and_the_class_that_they_name(tmp_path: Path) -> None:
    stream, photos = TinyStream(tmp_path), tmp_path / "photos"
    _table(stream.inbox, "twice", ["x0", "x1", "x0", "x1"])
    for name in ("sku 4711", "sku 471"):
        (photos / name).mkdir(parents=True)
        (photos / name / "good.png").write_bytes(picture(len(name)))
        (photos / name / "bad.png").write_bytes(picture(3)[:60])
    land_folder(stream.inbox, photos)
    stream.ingest()
    details = stream.writer.store.quarantine_rows()["detail"].to_pylist()
    assert len(details) == 4
    kept = {detail for detail in details if not detail.startswith(("id x0 ", "sku 4711/"))}
    assert len(kept) == 2
    asked = (("item", "x0"), ("class", "sku 4711"))
    for kind, name in asked:
        stream.writer.forget(kind, name, 1)  # type: ignore[arg-type]
    stream.writer.store.refresh()
    assert set(stream.writer.store.quarantine_rows()["detail"].to_pylist()) == kept, "hidden at once"
    for kind, name in asked:
        found = verify_forgotten(stream.root, kind, name).findings
        assert any(line.startswith("quarantine/") and "1 refused row" in line for line in found)
    stream.writer.maintain(NOW)
    left = _files(Path(stream.root))
    assert b"id x0" not in left
    assert b"4711" not in left
    assert all(detail.encode() in left for detail in kept)
    for kind, name in asked:
        assert not verify_forgotten(stream.root, kind, name).findings
    stream.close()


def _refuse(writer: Writer, shard_id: str, items: list[Item], problems: dict[int, str]) -> None:
    writer.record_landed([Shard(shard_id)])
    good = make_rows(shard_id, items, np.ones((len(items), writer.store.dim)), writer.tree.head)
    n = len(problems)
    bad = quarantine_rows((shard_id, row, "empty_image", detail, b"") for row, detail in problems.items())
    writer.commit_ingest(IngestBatch([shard_id], good, bad, {shard_id: {"reasons": {"empty_image": n}}}))


def _left(writer: Writer) -> list[tuple[str, int]]:
    table = writer.store.tables["quarantine"]
    table.refresh()
    rows = [row for path in sorted(table.present) for row in table.read(path).to_pylist()]
    return sorted((row["shard_id"], row["row"]) for row in rows)


def _erase_a_class(tmp_path: Path) -> Writer:
    """Refusals that name an item of the class by its id, or by its place alone; and the same of another class."""
    writer = new_root(str(tmp_path))
    unread = "left out of task-0001: OSError: image file is truncated"
    problems = {
        0: unread,
        1: unread,
        2: "id x came before in this shard",
        3: "id y came before in this shard",
    }
    _refuse(writer, "a", [Item("x", "oak"), Item("y", "elm")], problems)
    writer.forget("class", "oak", 1)
    _refuse(writer, "b", [Item("x", "oak")], {1: "id x came before in this shard"})  # it came back
    return writer


def test_what_names_an_item_of_an_erased_class_goes_too(tmp_path: Path) -> None:
    writer = _erase_a_class(tmp_path)
    writer.maintain(NOW)
    assert _left(writer) == [("a", 1), ("a", 3), ("b", 1)]
    assert writer.maintain(NOW).rows_purged == 0
    writer.release()


def test_what_is_erased_is_counted_no_more(tmp_path: Path) -> None:
    """By `status`, the driver, its metrics and a replica; what a Prometheus counter has counted stays counted."""
    writer = new_root(str(tmp_path))
    problems = {1: "id x came before in this shard", 2: "id y came before in this shard"}
    replica = RefusedRows(lambda: Table(writer.store.files, "quarantine"))

    def counted() -> list[Any]:
        metrics = DriverMetrics()
        metrics.figures = figures = stream_figures(writer.store, 1)
        shown, text = figures.as_status(), generate_latest(metrics.registry).decode()
        assert 'stream_odml_quarantined_rows_total{reason="empty_image"} 2.0' in text
        (there,) = re.findall(r'stream_odml_quarantine_rows{reason="empty_image"} ([0-9.]+)', text)
        by_command = root_status(str(tmp_path))
        ways = [
            shown,
            by_command,
            {"images": shown["images"], "quarantined": asyncio.run(replica.counts(writer.ledger))},
        ]
        assert all(way["images"]["quarantined"] == float(there) for way in ways)
        return [sum(way["quarantined"].values()) for way in ways]

    _refuse(writer, "a", [Item("x", "oak"), Item("y", "elm")], problems)
    assert counted() == [2, 2, 2]
    writer.forget("item", "x", 1)
    assert counted() == [1, 1, 1]  # hidden
    writer.maintain(NOW)
    assert counted() == [1, 1, 1]  # deleted
    writer.forget("shard", "a", 1)
    assert counted() == [0, 0, 0]
    writer.release()


@pytest.mark.parametrize("survived", [0, 1])
def test_a_purge_that_was_cut_short_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    writer = _erase_a_class(tmp_path)
    deleted: list[Any] = []
    delete = Housekeeper.delete

    def cut(self: Housekeeper, *args: Any) -> int:
        if len(deleted) == survived:
            raise KeyboardInterrupt
        deleted.append(args)
        return delete(self, *args)

    monkeypatch.setattr(Housekeeper, "delete", cut)
    with pytest.raises(KeyboardInterrupt):
        writer.maintain(NOW)
    monkeypatch.undo()
    writer.maintain(NOW)
    assert _left(writer) == [("a", 1), ("a", 3), ("b", 1)]
    assert sorted(writer.store.gallery_rows()["item_id"].to_pylist()) == ["x", "y"]
    writer.release()


@pytest.mark.parametrize("name", ["x0", LONG, QUOTED, "a: b", "blätter/0"])
def test_the_texts_that_name_an_item(tmp_path: Path, name: str) -> None:
    _table(tmp_path, "twice", [name, name])
    (ref,) = DirectorySource(tmp_path).poll(set())
    (twice,) = (row.detail for row in read_shard(ref) if isinstance(row, RowProblem))
    label = _problem(RawItem(0, name, "oak", b"", {}, None)).detail
    two = pa.table({"id": [name, name], "vector": [[1.0, 0.0], [0.0, 1.0]]})
    target = Target(dim=2, version="v", codes=None, held_out=0.0)
    (adopted,) = check(two, "s", target, Findings()).quarantine["detail"].to_pylist()
    rows = [RawRow(i, path=f"topic/0/{i}", item_id=name.encode()) for i in range(2)]
    (older,) = (row.problem[1] for row in _superseded(iter(rows)) if row.problem is not None)
    for text in (twice, label, adopted, older, f"tables/a.parquet#3: {twice}", f"left out of t: {name}: bad"):
        assert _is_erased(text, "item", name), text
        assert not _is_erased(text, "item", name, landed=3), "it came after the request"
        assert not any(_is_erased(text, "item", other) for other in ("x", "0", "b", "id", name[-9:-1])), text
    assert _is_erased("no bytes", "item", "s/7")
    assert not _is_erased("no bytes", "item", "s/70")


@pytest.mark.parametrize(
    "text",
    [
        "big oak/1.jpg: OSError: bad",
        "train/big oak/images/1.jpg: OSError: bad",
        "photos.tar/big oak/1.jpg: bad",
        "class=big%20oak/1.parquet#3: bad",
        "left out of task-0001: big oak/1.jpg: bad",
        "key big oak/1 came before in this shard",
        "sample 'big oak/1' has 2 images (.png, .jpg); keep one of each key",
        "'train/big oak/1.jpg' leads out of the shard",
    ],
)
def test_the_paths_that_name_a_class(text: str) -> None:
    assert _is_erased(text, "class", "big oak")
    assert not _is_erased(text, "class", "big oak", landed=3), "it came after the request"
    assert not _is_erased(text, "class", "big oak", format="messages"), "a topic is no class"
    assert not any(
        _is_erased(text, "class", name) for name in ("oak", "big", "g oak", "1", "bad", "came", "1.jpg")
    )


def test_names_that_are_quoted_or_composed_otherwise() -> None:
    assert _is_erased(f"member {QUOTED + '/1.jpg'!r} is a link or a device, not a file", "class", QUOTED)
    assert _is_erased("e\u0301tude/1.jpg: bad", "class", "\xe9tude")
