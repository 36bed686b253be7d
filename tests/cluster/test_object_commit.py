"""Every commit of a stream whose root is on an object store, without Ray: indexed, closed, learnt, forgotten."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_odml.ingest.boundary import BoundaryPolicy
from stream_odml.pipeline.messages import StageResult
from stream_odml.pipeline.stage_rows import write_rows
from stream_odml.pipeline.stages import Stages
from stream_odml.store.maintenance import MaintenancePolicy
from stream_odml.store.store import META, Store
from stream_odml.store.writer import Writer
from tests.cluster.small_root import DIM, artifacts, claim, index, shard
from tests.ingest.s3_server import NOT_CHECKED, SERVER, s3_options

pytestmark = pytest.mark.skipif(not SERVER, reason=NOT_CHECKED)
RANKS = 2


@pytest.fixture
def options(s3_port: int) -> dict[str, str]:
    return s3_options(s3_port)


@pytest.fixture
def root(bucket: str) -> str:
    return f"{bucket}/root"


def _learnt(writer: Writer, stages: Stages, folder: Path) -> StageResult:
    """What the ranks hand over: the task's rows under a new model, in a part of each rank."""
    order = stages.next_order()
    assert order is not None
    rows = writer.store.gallery_rows().select(META)
    paths = []
    for rank in range(RANKS):
        own = np.arange(len(rows))[rank::RANKS]
        vectors = np.full((len(own), DIM), 1.0 + rank, np.float32)
        write_rows(folder / "rows.parquet", rows, [(own, vectors)], order.version_id)
        paths.append(f"artifacts/{order.version_id}/rows-{rank}.parquet")
        writer.store.files.upload(paths[-1], folder / "rows.parquet")
    made = artifacts(writer, order.version_id)
    return StageResult(order.version_id, order.parent, order.task, made, tuple(paths))


def test_a_stage_is_committed_and_forgotten(root: str, options: dict[str, str], tmp_path: Path) -> None:
    writer = claim(root, options)
    stages = Stages(writer, BoundaryPolicy(new_classes=2, images=None, age_s=None), max_refusals=1)
    first, second = shard("a"), shard("b")
    writer.record_landed([first, second])
    index(writer, first, {"oak": 3})
    index(writer, second, {"elm": 2})
    assert stages.close_tasks() == ["task-0001"]
    result = _learnt(writer, stages, tmp_path)
    assert stages.commit(result) == result.version_id == stages.commit(result)
    left = {file.path.rpartition("/")[2] for file in writer.store.files.list("artifacts")}
    assert not any(name.startswith("rows-") for name in left)

    reader = Store.open(root, options)
    assert reader.tree.head == result.version_id
    rows = reader.gallery_rows().to_pylist()
    assert sorted(row["item_id"] for row in rows if row["version"] == result.version_id) == sorted(
        [*(f"{first.shard_id}/{i}" for i in range(3)), *(f"{second.shard_id}/{i}" for i in range(2))]
    )
    writer.forget("class", "oak")
    writer.maintain(MaintenancePolicy())
    reader.refresh()
    assert {row["class_name"] for row in reader.gallery_rows().to_pylist()} == {"elm"}
    writer.release()
