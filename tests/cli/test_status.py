"""`status` says what can be found now, beside what was ever taken in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.pipeline.figures import gallery_counts, stream_figures
from stream_odml.store.ledger import LedgerState
from stream_odml.store.store import Store
from tests.cluster.small_root import claim, index, shard


def run(*words: str) -> str:
    done = CliRunner().invoke(app, words, env={"COLUMNS": "300"})
    assert done.exit_code == 0, (done.output, done.exception)
    return " ".join(done.output.split())


def trees(path: Path, names: list[str]) -> str:
    vectors = np.random.default_rng(0).normal(size=(len(names), 8)).astype(np.float32)
    columns = {"id": [f"tree-{n}" for n in range(len(names))], "vector": list(vectors), "species": names}
    pq.write_table(pa.table(columns), path)
    return str(path)


def test_status_counts_what_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, names = str(tmp_path / "root"), ["ash", "elm", "oak", ""] * 6
    run("adopt", trees(tmp_path / "a.parquet", names), "--root", root, "--class", "species")
    # The same items again, one of them of another class, and one more.
    names[0] = "yew"
    run("adopt", trees(tmp_path / "b.parquet", [*names, "elm"]), "--root", root, "--class", "species")
    said = run("status", root)
    assert "25 items of 4 classes can be found" in said
    assert "ever taken in 49 rows" in said
    run("forget", root, "--class", "ash", "--yes")
    run("forget", root, "--item", "tree-0", "--yes")
    assert "19 items of 2 classes can be found" in run("status", root)
    report: dict[str, Any] = json.loads(run("status", root, "--json"))
    assert report["gallery"] == {"items": 19, "classes": 2}
    assert report["images"]["ingested"] == 49
    monkeypatch.setattr("stream_odml.pipeline.figures.MAX_COUNTED", 48)
    assert gallery_counts(Store.open(root)) is None
    assert "can be found" not in run("status", root)


def test_the_gauge_counts_no_class_that_was_erased(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    refs = [shard(name) for name in "abcd"]
    writer.record_landed(refs)
    index(writer, refs[0], {"oak": 2, "elm": 1, "": 3})
    index(writer, refs[1], {"ash": 1, "elm": 1})

    def classes() -> int:
        found = stream_figures(writer.store, 1).classes
        whole = writer.store.ledger
        rows = writer.store.table("ledger").read_all().to_pylist()
        assert LedgerState.replay(rows).tally == whole.tally, "however it was replayed"
        return found

    assert classes() == 3
    writer.forget("class", "oak")
    assert classes() == 2
    # It landed before the request, which covers it, and is indexed after.
    index(writer, refs[2], {"oak": 1})
    assert classes() == 2
    # The other class of this shard is in another one, too.
    writer.forget("shard", refs[1].shard_id)
    assert classes() == 1
    late = shard("late")
    writer.record_landed([late])
    index(writer, late, {"oak": 1})
    assert classes() == 2
    writer.release()
