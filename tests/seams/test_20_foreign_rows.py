"""Seam 20: the rows, logs and files of images of a root are somebody else's too. What is not as a stream writes it is
named in one error, or is not there; it ends nobody who shows the stream."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from deltalake.exceptions import DeltaError
from typer.testing import CliRunner

from stream_odml.cli.main import app as cli
from stream_odml.cli.report import page
from stream_odml.cli.report_data import report_data
from stream_odml.config.service import ServiceOptions
from stream_odml.ingest.kept_images import has_images, read_images
from stream_odml.pipeline.examining import examine_root
from stream_odml.pipeline.held_out import embed_images
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from stream_odml.storage.files import LocalFiles
from stream_odml.store.errors import TableCorrupt
from stream_odml.store.ledger import LedgerState
from stream_odml.store.store import Store
from stream_odml.store.tables import SCHEMAS
from stream_odml.store.version_metrics import VersionMetrics
from stream_odml.store.versions import VersionTree
from tests.memory import forget_peak, peak_mib
from tests.seams.test_19_bombs import lie_about_sizes
from tests.service.local import LocalApi
from tests.service.tiny_stream import TinyStream, picture

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LANDED = {"name": "a", "uri": "/x/a", "format": "parquet", "size_bytes": 3}
LONG = "1" * 5000


def row(kind: str, detail: object, seq: int = 1, **values: Any) -> dict[str, Any]:
    text = detail if isinstance(detail, str) else json.dumps(detail)
    base = {
        "seq": seq,
        "epoch": 0,
        "time": NOW,
        "kind": kind,
        "subject": "a",
        "txn": "t",
        "task": "task-0001",
    }
    return {**base, "detail": text, **values}


BEFORE = [row("landed", LANDED, -4), row("indexed", {"rows": 1}, -3), row("assigned", {}, -2)]
NO_OBJECT: list[Any] = ["[]", "5", "null", '"x"', "{", "NaN", "[" * 3000, f'{{"name": {LONG}}}']
NO_NUMBERS: list[Any] = [[], 5, {"a": "x"}, {"a": None}, {"a": [1]}, {"a": -1}]
NO_TEXT: list[Any] = [5, ["x"], {}, ""]
BAD: list[tuple[str, Any]] = [
    *(("landed", bad) for bad in NO_OBJECT),
    ("landed", {}),
    *(("landed", {**LANDED, "size_bytes": bad}) for bad in ("x", 1e300, float("inf"), -1, True, [1])),
    *(("landed", {**LANDED, name: bad}) for name in ("name", "format") for bad in NO_TEXT),
    *(("indexed", {"rows": bad}) for bad in ("x", [1], -5, 10**30, float("nan"))),
    *(("indexed", {name: bad}) for name in ("classes", "reasons", "trainable")
      for bad in NO_NUMBERS),
    ("assigned", {"detail": []}),
    ("assigned", {"reason": 5}),
    *(("attempt", bad) for bad in ({}, {"parent": 5}, {"parent": "v", "kind": 5}, {"parent": "v", "tasks": "abc"},
                                   {"parent": "v", "shards": {"a": 1}}, {"parent": "v", "tasks": [5]})),
    *((kind, {"reason": ["x"]}) for kind in ("refused", "skipped", "set_aside")),
    *(("forget", bad) for bad in ({}, {"of": "world"}, {"of": ["item"]}, {"of": "item", "items": "x"},
                                  {"of": "item", "items": float("inf")})),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "detail"), BAD, ids=lambda value: str(value)[:40])
def test_a_row_of_the_ledger_that_cannot_be_read_is_named(kind: str, detail: Any) -> None:
    fresh: dict[str, Any] = {"landed": {"subject": "b"}, "assigned": {"task": "task-0002"}}.get(kind, {})
    with pytest.raises(TableCorrupt, match=rf"row 1 of the table 'ledger' \('{kind}'\).*backup") as error:
        LedgerState.replay([*BEFORE, row(kind, detail, **fresh)], LedgerState(seq=-9))
    assert len(str(error.value)) < 600


@pytest.mark.parametrize(
    "kind", ["indexed", "assigned", "attempt", "refused", "skipped", "relearn", "set_aside"]
)
def test_a_row_about_what_the_ledger_does_not_know_is_named(kind: str) -> None:
    with pytest.raises(TableCorrupt, match="'nope' is not known"):
        LedgerState.replay(
            [*BEFORE, row(kind, {"parent": "v"}, subject="nope", task="nope")], LedgerState(seq=-9)
        )
    with pytest.raises(TableCorrupt, match="no time"):
        LedgerState.replay([*BEFORE, row(kind, {"parent": "v"}, time=None)], LedgerState(seq=-9))


def test_a_kind_of_a_later_release_is_passed_over_whatever_it_holds() -> None:
    assert LedgerState.replay([row("later", "[1]")]).seq == 1


REF = {"path": "artifacts/x", "sha256": "0" * 64, "bytes": 1}


def version(seq: int = 1, **values: Any) -> dict[str, Any]:
    base = {
        "seq": seq,
        "epoch": 0,
        "time": NOW,
        "kind": "version",
        "version_id": "v1",
        "parent": "v0",
        "task": "t",
    }
    return {**base, "artifacts": "{}", "metrics": "{}", "reason": "", **values}


BAD_VERSIONS: list[dict[str, Any]] = [
    *({"metrics": bad} for bad in NO_OBJECT),
    *({"artifacts": bad} for bad in NO_OBJECT),
    *({"artifacts": json.dumps({"student": bad})}
      for bad in (5, {}, {**REF, "path": 5}, {**REF, "bytes": "x"}, {**REF, "sha256": []})),
    *({"metrics": f'{{"sums_seq": {bad}}}'} for bad in ('"x"', "1e300", "Infinity", "[]")),
    *({"version_id": bad} for bad in ("", None, "a/b", "../../x", "v\x1b[31m", "v\r\nX: y", 'v"q', "v日本", "v" * 300)),
    {"parent": None},
    {"parent": "nope"},
    {"parent": "v1"},
    {"time": None},
    {"kind": "refusal", "metrics": "[["},
    {"kind": "evaluation", "version_id": "v0", "metrics": "[1]"},
    {"kind": "artifact", "version_id": "v0", "artifacts": "5"},
]  # fmt: skip


@pytest.mark.parametrize("values", BAD_VERSIONS, ids=lambda value: str(value)[:40])
def test_a_row_of_the_versions_that_cannot_be_read_is_named(values: dict[str, Any]) -> None:
    root = version(0, version_id="v0", parent=None)
    with pytest.raises(TableCorrupt, match=r"row 1 of the table 'versions'.*backup") as error:
        VersionTree.replay([root, version(**values)])
    assert len(str(error.value)) < 600


@pytest.mark.parametrize("odd", ["x", [1], {}, None, True, float("nan"), float("inf")], ids=str)
def test_a_metric_that_is_no_figure_was_not_measured(odd: Any) -> None:
    names = (
        "recall_at_1/union/served",
        "forgetting",
        "classes",
        "seconds",
        "drift/x",
        "parent_recall_at_1/old",
    )
    odd_class = {"cat": odd, "dog": 0.5}
    assert VersionMetrics.read(dict.fromkeys(names, odd)) == VersionMetrics()
    assert VersionMetrics.read({"recall_by_class": odd_class}).recall_by_class == {"dog": 0.5}
    assert VersionMetrics.read({"recall_by_class": odd, "kind": 5}) == VersionMetrics()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of one stage, with thumbnails and two landed shards."""
    stream = TinyStream(tmp_path_factory.mktemp("stream"))
    stream.land("a", ["cat", "dog"])
    stream.stage()
    stream.close()
    return Path(stream.root)


def copied(root: Path, to: Path) -> Path:
    return Path(shutil.copytree(root, to / "root"))


LOGS = [b"\xff\xfe", b"[", b"5", b"null", b'{"add": 5}', b'{"metaData": 5}', b"[" * 100_000,
        b'{"protocol": {"minReaderVersion": 99, "minWriterVersion": 99}}']  # fmt: skip


@pytest.mark.parametrize("said", LOGS, ids=range(len(LOGS)))
def test_a_log_that_cannot_be_read_is_named_in_one_line(root: Path, tmp_path: Path, said: bytes) -> None:
    root = copied(root, tmp_path)
    store = Store.open(str(root))
    (root / "ledger" / "_delta_log" / f"{store.tables['ledger'].version + 1:020d}.json").write_bytes(said)
    for read in (store.refresh, lambda: Store.open(str(root))):
        with pytest.raises(TableCorrupt, match=r"log of the table .*ledger cannot be read .*backup") as error:
            read()
        assert "\n" not in str(error.value)
        assert isinstance(error.value, DeltaError), "what tells an unreachable store from a fault of a task"
    (finding,) = examine_root(str(root))
    assert finding.state == "failure"


def append(root: Path, table: str, values: dict[str, Any]) -> None:
    handle = Store.open(str(root)).tables[table]
    handle.append(pa.table({f.name: [values.get(f.name)] for f in SCHEMAS[table]}, SCHEMAS[table]), 0)


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("ledger", row("landed", "[]", 1 << 40, subject="b")),
        ("versions", version(1 << 40, metrics="[]")),
        ("ledger", row("landed", LANDED, 1 << 40, subject="b", time=pa.scalar(1 << 62, pa.timestamp("us", "UTC")))),
    ],
    ids=["ledger", "versions", "time"],
)  # fmt: skip
def test_every_command_that_looks_says_so_in_one_line(
    root: Path, tmp_path: Path, table: str, values: dict[str, Any]
) -> None:
    root = copied(root, tmp_path)
    append(root, table, values)
    for command in (["status"], ["versions"], ["report", "--out", str(tmp_path / "r.html")]):
        said = CliRunner().invoke(cli, [command[0], str(root), *command[1:]])
        assert isinstance(said.exception, TableCorrupt), (command, said.exception, said.output)
    (finding,) = examine_root(str(root))
    assert (finding.state, table in finding.detail) == ("failure", True)


@pytest.mark.parametrize("table", ["ledger", "versions", "gallery"])
def test_a_data_file_that_is_none_is_named(root: Path, tmp_path: Path, table: str) -> None:
    root = copied(root, tmp_path)
    for path in (root / table).glob("*.parquet"):
        path.write_bytes(b"PAR1 but no more")
    with pytest.raises(TableCorrupt, match=rf"data file part-.* of table '{table}' .*backup"):
        Store.open(str(root))


def nulls(path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a/0", None], "image": pa.array([None, b"x"], pa.binary())}), path)


def of_text(path: Path) -> None:
    pq.write_table(pa.table({"item_id": ["a/0"], "image": ["<script>"]}), path)


def garbage(path: Path) -> None:
    path.write_bytes(b"PAR1")


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def link_out(path: Path) -> None:
    path.unlink()
    path.symlink_to("/etc/passwd")


def bomb(path: Path) -> None:
    """Hundreds of megabytes out of a few kilobytes."""
    with pq.ParquetWriter(path, pa.schema({"item_id": pa.string(), "image": pa.binary()}), compression="zstd",
                          use_dictionary=False) as writer:  # fmt: skip
        part = pa.table({"item_id": ["a/0"] * 64, "image": [bytes(1 << 20)] * 64}, writer.schema)
        for _ in range(5):
            writer.write_table(part)


FILES = [nulls, of_text, garbage, fifo, link_out, bomb]


@pytest.mark.parametrize("plant", FILES)
def test_a_file_of_images_that_is_none_has_none(
    root: Path, tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    root = copied(root, tmp_path)
    (path,) = (root / "thumbnails").glob("*.parquet")
    plant(path)
    options = ServiceOptions(poll_s=60.0)
    replica = Replica(str(root), options)
    replica.start()
    with LocalApi(create_app(replica, options, replica.metrics)) as api:
        assert api.get("/v1/items/a%2F0").status_code == 200
        assert api.get("/v1/items/a%2F0/thumbnail").status_code == 404
    replica.close()
    page(report_data(str(root), 4, 2, 0), {})


@pytest.mark.parametrize("plant", FILES)
def test_held_out_images_that_are_none_are_measured_on_none(
    tmp_path: Path, plant: Callable[[Path], None]
) -> None:
    (tmp_path / "holdout").mkdir()
    path = tmp_path / "holdout" / "s.parquet"
    pq.write_table(pa.table({"item_id": ["a/0", "b"], "image": [picture(1), picture(2)]}), path)
    store: Any = SimpleNamespace(files=LocalFiles(str(tmp_path)))
    keys = [("s", "b"), ("s", "a/0"), ("s", "c")]
    there, _ = embed_images(store, keys, (), 8, 1 << 20, "cpu")
    assert there.tolist() == [True, True, False]
    plant(path)
    forget_peak()
    before = peak_mib()
    there, _ = embed_images(store, keys, (), 8, 1 << 20, "cpu")
    assert not there.any()
    assert peak_mib() - before < 300


def test_held_out_images_that_cannot_be_read_now_are_asked_for_again() -> None:
    """Were they left out, a stage would be judged by fewer."""

    def read(path: str) -> bytes:
        raise OSError("the store is unreachable")

    store: Any = SimpleNamespace(files=SimpleNamespace(read=read))
    with pytest.raises(OSError, match="unreachable"):
        embed_images(store, [("s", "b")], (), 8, 1 << 20, "cpu")


def test_an_image_that_many_rows_repeat_is_held_once(tmp_path: Path) -> None:
    table = pa.table({"item_id": [f"{i}" for i in range(500)], "image": [bytes(1 << 16)] * 500})
    pq.write_table(table, tmp_path / "x.parquet")
    images = read_images(LocalFiles(str(tmp_path)), "x.parquet")
    assert (len(images), len({id(image) for image in images.values()})) == (500, 1)
    assert images["7"] == bytes(1 << 16)


def test_what_a_file_says_of_its_size_is_not_believed(tmp_path: Path) -> None:
    """256 MiB and more in one page, of which the footer knows nothing."""
    small = pa.table({"item_id": ["a/0"] * 8, "image": [bytes(40 << 20)] * 8})
    pq.write_table(
        small, tmp_path / "bomb.parquet", compression="zstd", use_dictionary=False, write_batch_size=1
    )
    lie_about_sizes(tmp_path / "bomb.parquet", column=1)
    forget_peak()
    before = peak_mib()
    assert read_images(LocalFiles(str(tmp_path)), "bomb.parquet") == {}
    assert peak_mib() - before < 300


def test_images_are_read_as_they_were_kept(tmp_path: Path) -> None:
    files = LocalFiles(str(tmp_path))
    pq.write_table(pa.table({"image": [picture(1)], "more": [1], "item_id": ["a"]}), tmp_path / "x.parquet")
    assert read_images(files, "x.parquet") == {"a": picture(1)}
    assert read_images(files, "gone.parquet") == {}
    assert (has_images(files, "x.parquet"), has_images(files, "../x"), has_images(files, "y")) == (
        True,
        False,
        False,
    )
