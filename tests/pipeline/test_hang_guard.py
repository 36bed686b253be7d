"""A reader that hangs is ended as one that dies is, and the shard that hung it is set aside; all others are indexed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import ray

from stream_odml.cluster.actors import IndexedBatch
from stream_odml.cluster.indexer import Indexer
from stream_odml.cluster.ingestion import Ingestion
from stream_odml.config.stream import parse_config
from stream_odml.ingest import rows
from stream_odml.ingest.landing import land_items
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import build_embedder, embedder_to_bytes
from stream_odml.pipeline import indexing
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.store import Store
from stream_odml.store.writer import Writer
from tests.ingest.helpers import some_items

SCRIPT = """
import time
from stream_odml.pipeline.hang_guard import hang_guard
with hang_guard(2.0) as beat:
    for _ in range(12):
        time.sleep(0.2)
        beat()
print("alive", flush=True)
time.sleep(2.5)
with hang_guard(0.5):
    sum(range(1 << 62))  # never lets go of the interpreter lock for long, nor ends
"""


def test_slow_work_lives_and_hung_work_ends_with_a_traceback() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=600)
    assert done.stdout == "alive\n"
    assert done.returncode == 1
    assert "Timeout" in done.stderr


class Stuck(Indexer):
    """An indexer whose decoder waits for ever in one certain shard."""

    def index(self, refs: list[ShardRef], version: str) -> IndexedBatch:
        decode = rows.decode_shard

        def stuck(ref: ShardRef, *arguments: Any, **more: Any) -> Any:
            if ref.name.startswith("stuck"):
                time.sleep(1000)
            return decode(ref, *arguments, **more)

        with mock.patch.object(indexing, "decode_shard", stuck):
            return super().index(refs, version)


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.usefixtures("ray_cpus")
def test_a_shard_that_hangs_its_reader_is_set_aside(tmp_path: Path) -> None:
    config = parse_config(
        {
            "root": str(tmp_path / "root"),
            "method": "distilled",
            "model": {"backbone": "conv4", "dim": 8, "image_size": 16},
            "ingest": {"hang_s": 4.0, "tries": 1, "batch_shards": 3},
        }
    )
    Store.create(config.root, 8)
    writer = Writer.claim(config.root, "test")
    writer.commit_root({STUDENT: embedder_to_bytes(build_embedder(config.model, 0))})
    for number, name in enumerate(["a", "stuck", "b", "c"]):
        land_items(tmp_path / "inbox", name, some_items(5, first=5 * number))
    actor = ray.remote(num_cpus=0.2, max_restarts=-1, max_task_retries=0)(Stuck)
    tier = Ingestion(writer, [actor.remote(config.model_dump_json())], config.ingest)
    tier.land(DirectorySource(tmp_path / "inbox").poll(set()))
    deadline = time.monotonic() + 500
    while writer.ledger.landed and time.monotonic() < deadline:
        tier.gather(0.1)
        tier.commit()
        tier.dispatch(writer.tree.head)
    (aside,) = writer.ledger.in_state("set_aside")
    assert (aside.name, aside.attempts) == ("stuck.parquet", 1)
    assert "hung it for 4 s" in (aside.problem or "")
    assert sorted(s.name for s in writer.ledger.indexed.values()) == ["a.parquet", "b.parquet", "c.parquet"]
    assert len(writer.store.gallery_rows()) == 15
    writer.release()
