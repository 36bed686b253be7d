"""An image, a task and an erasure pass few functions of ours: each one decides something."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest
import scipy.linalg
import torch
from deltalake import DeltaTable, write_deltalake
from PIL import Image
from torch.optim.adam import adam

from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.store.maintenance import MaintenancePolicy
from tests.hops import hops_to
from tests.pipeline.trunk_stream import CATEGORIES, Trunk
from tests.service.tiny_stream import TinyStream, picture

AT_ONCE = MaintenancePolicy(retention=timedelta(0), orphan_age=timedelta(0))


@pytest.fixture
def stream(tmp_path: Path) -> TinyStream:
    return TinyStream(tmp_path)


def test_an_image_passes_few_functions_until_it_is_stored(stream: TinyStream) -> None:
    def ingest(name: str) -> list[str]:
        land_items(stream.inbox, name, [NewItem(picture(0), "cat", "one")])
        return stream.ingest()

    decoded = hops_to(Image.open, lambda: ingest("a"))
    embedded = hops_to(torch.nn.Conv2d.forward, lambda: ingest("b"))
    committed = hops_to(write_deltalake, lambda: ingest("c"))
    assert len(decoded) <= 8, "\n".join(decoded)
    assert len(embedded) <= 7, "\n".join(embedded)
    assert len(committed) <= 5, "\n".join(committed)
    stream.close()


def test_a_task_passes_few_functions_until_it_is_learnt(tmp_path: Path) -> None:
    stream = Trunk(tmp_path)
    stream.land("by_trunk", CATEGORIES[:4])
    order = stream.stages.next_order()
    assert order is not None
    assert stream.stages.solve_next() is None
    run = stream.run(order, steps=0)
    stepped = hops_to(adam, run.step)
    while run.learner.next_step < run.learner.total_steps:
        run.step()
    solved = hops_to(scipy.linalg.solve_triangular, run.finish)
    committed = hops_to(write_deltalake, lambda: stream.stages.commit(run.settle()))
    assert len(stepped) <= 4, "\n".join(stepped)
    assert len(solved) <= 11, "\n".join(solved)
    assert len(committed) <= 7, "\n".join(committed)
    stream.land("by_head", CATEGORIES[4:6])
    fast = hops_to(scipy.linalg.solve_triangular, stream.learn)
    assert len(fast) <= 9, "\n".join(fast)
    stream.writer.release()


def test_an_erasure_passes_few_functions_until_the_rows_are_gone(stream: TinyStream) -> None:
    stream.land("a", ["cat", "dog"])
    hidden = hops_to(write_deltalake, lambda: stream.writer.forget("class", "cat", 2))
    deleted = hops_to(DeltaTable.delete, lambda: stream.writer.maintain(AT_ONCE))
    assert len(hidden) <= 5, "\n".join(hidden)
    assert len(deleted) <= 8, "\n".join(deleted)
    stream.close()
