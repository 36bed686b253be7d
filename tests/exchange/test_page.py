"""The page on vectors does what it says: its commands one after the other, and its snippets against a stream."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from stream_odml.cli.main import app
from stream_odml.client import Client
from stream_odml.config.service import ServiceOptions
from stream_odml.exchange.source import as_lists
from stream_odml.service.api import create_app
from stream_odml.service.replica import Replica
from tests.docs.pages import blocks
from tests.seams.in_process import in_process
from tests.service.vector_stream import D, VectorStream, vectors_of

PAGE = "howto/vectors.md"
NAMES = [f"sku {i % 4}" for i in range(40)]


def test_the_commands_and_snippets_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    columns = {"vector": as_lists(vectors_of(NAMES)), "id": [f"p{i}" for i in range(100, 140)], "sku": NAMES}
    pq.write_table(pa.table({**columns, "colour": ["red"] * 40}), "items.parquet")
    for line in (line for block in blocks(PAGE, "bash") for line in block.splitlines()):
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, (line, result.output, result.exception)
    assert {path.name for path in Path("out").iterdir()} == {
        "export.json", "items.parquet", "items.faiss", "items.ids.parquet", "items.npz", "model"
    }  # fmt: skip
    assert len(list(Path("copy").glob("space-*"))) == 1

    stream = VectorStream(
        tmp_path / "shop",
        model={"backbone": "none", "input_dim": D, "head": "discriminant", "dim": 12},
    )
    options = ServiceOptions(poll_s=0.02)
    replica = Replica(stream.config.root, options)
    replica.start()
    served, real = create_app(replica, options, replica.metrics), httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **more: real(**{**more, "transport": in_process(served)}))
    space: dict[str, Any] = {
        "embed": lambda text: vectors_of([text.split()[-1].removesuffix("s")], len(text))[0]
    }
    first, second = blocks(PAGE, "python")
    try:
        exec(compile(first, PAGE, "exec"), space)
        stream.ingest()
        deadline = time.monotonic() + 240
        with Client() as client:
            while not client.search_vector(np.ones(D, np.float32), k=50, classes=["shoe"]).hits:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        exec(compile(second, PAGE, "exec"), space)
        assert stream.ingest() == []
    finally:
        replica.close()
        stream.close()
    assert {line.split()[0] for line in capsys.readouterr().out.splitlines()} >= {"p1", "p2"}
    rows = stream.writer.store.gallery_rows(vectors=False).to_pylist()
    assert [row["class_name"] for row in rows if row["item_id"] == "p2"] == ["", "shoe"]
