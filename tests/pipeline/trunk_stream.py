"""A root whose first trunk is of weights from nothing, and whatever lands and is learnt, without Ray."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from stream_odml.config.stream import parse_config
from stream_odml.ingest.glyphs import GlyphCategory, glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.learn.embedder import build_embedder, embedder_from_bytes
from stream_odml.learn.world import World
from stream_odml.pipeline.fast_stage import fast_stage
from stream_odml.pipeline.first_version import first_version
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.pipeline.later_stages import LaterRules
from stream_odml.pipeline.messages import StageOrder, StageProgress, StageResult
from stream_odml.pipeline.sources import inbox_path, open_sources
from stream_odml.pipeline.stage_run import StageFailed, StageRun
from stream_odml.pipeline.stages import Stages
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.store import Store
from stream_odml.store.sums import learnt_rows
from stream_odml.store.writer import Writer

CATEGORIES = [
    category for category, _ in zip(glyph_categories(0, images=10, size=16), range(12), strict=False)
]


class Trunk:
    """A writer, and tasks that a manifest closes; `config`: sections that replace those below."""

    def __init__(self, folder: Path, learning: Mapping[str, Any] | None = None, **config: Any) -> None:
        steps = {"base_steps": 4, "stage_steps": 3, "classes_per_batch": 2, "images_per_class": 3}
        self.config = parse_config(
            {
                "root": str(folder / "root"),
                "model": {"dim": 8, "image_size": 16, "head": "discriminant", "lift": 16},
                "learning": {**steps, "trunk": "frozen", **(learning or {})},
                "boundary": {"new_classes": None, "images": None, "age_s": None},
                "evaluation": {"held_out": 0.3},
                "gate": {"enabled": False},
                "store": {"renew_per_s": 0},
                **config,
            }
        )
        model = build_embedder(self.config.model, 0)
        store = Store.create(self.config.root, model.out_dim, form="exact", keep_gallery=False)
        self.writer = Writer.claim(store, "test", takeover=True)
        self.writer.commit_root(*first_version(self.config, model.out_dim))
        self.stages = self.new_stages()
        self.sources = open_sources(self.config)
        self.inbox = str(inbox_path(self.config))

    def new_stages(self) -> Stages:
        """What a driver that begins again has."""
        config = self.config
        return Stages(self.writer, config.boundary, 1, config.learns_trunk, LaterRules.of(config))

    def land(self, task: str, categories: list[GlyphCategory]) -> None:
        """Land a task of one shard and index it by the head's trunk."""
        self._land(task, categories)
        complete_task(self.inbox, task, [f"{task}.parquet"])
        self._index()

    def land_open(self, shard: str, categories: list[GlyphCategory]) -> None:
        """Land and index a shard of no task: the boundary decides."""
        self._land(shard, categories)
        self._index()

    def _land(self, shard: str, categories: list[GlyphCategory]) -> None:
        land_items(
            self.inbox, shard, [NewItem(image, c.class_name) for c in categories for image in c.images]
        )

    def _index(self) -> None:
        refs = [ref for source in self.sources for ref in source.poll(set(self.writer.store.ledger.shards))]
        self.writer.record_landed(refs)
        head = self.writer.tree.head
        trunk = embedder_from_bytes(self.writer.store.artifact(head, STUDENT))
        options = IndexOptions(1 << 20, False, self.config.evaluation.held_out, codes="int8")
        for ref in refs:
            self.writer.commit_ingest(index_shard(ref, trunk, head, self.writer.store.files, options))
        self.stages.close_tasks()

    def learn(self) -> StageOrder:
        """The next task, by whatever its order asks for."""
        order = self.stages.next_order()
        assert order is not None
        if order.kind == "head":
            result = fast_stage(Store.open(self.config.root), order, self.config)
        else:
            assert self.stages.solve_next() is None
            run = self.run(order)
            result = run.finish()
            run.close()
        assert self.stages.commit(result) == order.version_id
        return order

    def improve(self) -> StageOrder | None:
        """What the trainer would do now, if it is none of a task that is due."""
        order = self.later()
        if order is not None:
            run = self.run(order)
            self.stages.commit(run.finish())
            run.close()
        return order

    def fails(self, order: StageOrder) -> None:
        """Begin a stage that cannot be learnt, and hand over why, as the trainer does."""
        run = StageRun(self.config, order, Store.open(self.config.root), World(), lambda progress: None)
        with pytest.raises(StageFailed) as failed:
            run.open()
        why = str(failed.value)
        self.stages.commit(StageResult(order.version_id, order.parent, order.task, refusal=why))

    def later(self) -> StageOrder | None:
        """The order that the trainer would get, which must not be due."""
        order = self.stages.dispatch(StageProgress())
        assert order is None or order.improves
        return order

    def run(self, order: StageOrder, steps: int | None = None) -> StageRun:
        """A stage after so many steps; by default after its last."""
        run = StageRun(self.config, order, Store.open(self.config.root), World(), lambda progress: None)
        run.open()
        while run.learner.next_step < (run.learner.total_steps if steps is None else steps):
            run.step()
        return run

    def sums_are_of_what_is_stored(self, version: str | None = None) -> bool:
        """Compare a version's sums, by default the head's, with those computed again."""
        store = Store.open(self.config.root)
        version = version or store.tree.head
        sums = store.sums_of(version)
        assert sums is not None
        again = learnt_rows(store, version).sums(sums.lift)
        assert sums.names == again.names
        return bool((sums.products_EE == again.products_EE).all() and (sums.sums_CE == again.sums_CE).all())


def learns(stream: Trunk, name: str, first: int, after: int) -> None:
    """Land a task of these classes, and learn it."""
    stream.land(name, CATEGORIES[first:after])
    stream.learn()
