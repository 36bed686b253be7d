"""Under a discriminant head the first task is learnt step by step; later ones are not, and what another trunk had
embedded is embedded anew first. Sums are of what is stored, whatever was lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_odml.cli.versions_table import stage_rows
from stream_odml.config.stream import parse_config
from stream_odml.ingest.glyphs import GlyphCategory, glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.learn.embedder import build_embedder, embed, embedder_from_bytes
from stream_odml.learn.world import World
from stream_odml.pipeline.fast_stage import fast_stage
from stream_odml.pipeline.first_version import first_version
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.pipeline.messages import StageOrder
from stream_odml.pipeline.sources import inbox_path, open_sources
from stream_odml.pipeline.stage_run import Place, StageRun
from stream_odml.pipeline.stages import Stages
from stream_odml.store.artifacts import BACKWARD, CANARIES, FORWARD, HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.sums import learnt_rows
from stream_odml.store.writer import IngestBatch, Writer

CATEGORIES = [
    category for category, _ in zip(glyph_categories(0, images=10, size=16), range(9), strict=False)
]


class Trunk:
    """A root whose first trunk is of weights from nothing, and whatever lands and is learnt, without Ray."""

    def __init__(self, folder: Path) -> None:
        self.config = parse_config(
            {
                "root": str(folder / "root"),
                "model": {"dim": 8, "image_size": 16, "head": "discriminant"},
                "learning": {"base_steps": 4, "classes_per_batch": 2, "images_per_class": 3},
                "boundary": {"new_classes": None, "images": None, "age_s": None},
                "evaluation": {"held_out": 0.3},
                "gate": {"enabled": False},
            }
        )
        model = build_embedder(self.config.model, 0)
        Store.create(self.config.root, model.out_dim, form="exact")
        self.writer = Writer.claim(self.config.root, "test")
        self.writer.commit_root(*first_version(self.config, model.out_dim))
        self.stages = Stages(self.writer, self.config.boundary, 1, self.config.learns_trunk)
        self.sources = open_sources(self.config)
        self.inbox = str(inbox_path(self.config))

    def land(self, task: str, categories: list[GlyphCategory]) -> None:
        """Land a task of one shard and index it by the head's trunk."""
        items = [NewItem(image, c.class_name) for c in categories for image in c.images]
        land_items(self.inbox, task, items)
        complete_task(self.inbox, task, [f"{task}.parquet"])
        refs = [ref for source in self.sources for ref in source.poll(set(self.writer.store.ledger.shards))]
        self.writer.record_landed(refs)
        head = self.writer.tree.head
        trunk = embedder_from_bytes(self.writer.store.artifact(head, STUDENT))
        options = IndexOptions(1 << 20, False, self.config.evaluation.held_out, codes="int8")
        for ref in refs:
            done = index_shard(ref, trunk, head, self.writer.store.files, options)
            counts = {"trainable": dict(done.trainable), "reasons": {}, "version": head}
            self.writer.commit_ingest(
                IngestBatch([ref.shard_id], done.rows, done.quarantine, {ref.shard_id: counts})
            )
        self.stages.close_tasks()

    def learn(self) -> StageOrder:
        """The next task, by whatever its order asks for."""
        order = self.stages.next_order()
        assert order is not None
        store = Store.open(self.config.root)
        if order.kind == "head":
            assert self.stages.dispatch(None) is None  # type: ignore[arg-type]
            result = fast_stage(store, order, self.config)
        else:
            assert self.stages.solve_next() is None
            run = StageRun(self.config, order, store, World(), Place(), lambda progress: None)
            run.open()
            while run.next_step < run.total_steps:
                run.step()
            result = run.finish()
            run.close()
        assert self.stages.commit(result) == order.version_id
        return order

    def sums_are_of_what_is_stored(self) -> bool:
        """Compare the head version's sums with those computed again."""
        store = Store.open(self.config.root)
        sums = store.sums_of(store.tree.head)
        assert sums is not None
        again = learnt_rows(store, store.tree.head).sums(sums.lift)
        assert sums.names == again.names
        return bool((sums.products_EE == again.products_EE).all() and (sums.sums_CE == again.sums_CE).all())


@pytest.fixture
def stream(tmp_path: Path) -> Trunk:
    return Trunk(tmp_path)


def test_base_then_anew_then_by_sums_alone(stream: Trunk) -> None:
    stream.land("one", CATEGORIES[:3])
    stream.land("two", CATEGORIES[3:6])
    base = stream.learn()
    stream.land("three", CATEGORIES[6:])
    kinds, tree = [base.kind], stream.writer.tree
    version = tree.get(base.version_id)
    assert set(version.artifacts) == {STUDENT, CANARIES, FORWARD, BACKWARD, HEAD, SUMS}
    assert version.metrics["steps"] == 4
    assert "recall_at_1/new/served" in version.metrics
    assert stream.sums_are_of_what_is_stored()
    for _ in range(2):
        kinds.append(stream.learn().kind)
        assert stream.sums_are_of_what_is_stored()
    assert kinds == ["trunk", "embed", "head"]
    store = Store.open(stream.config.root)
    head = store.head_of(store.tree.head)
    assert len(head.names) == 9
    made = store.gallery_rows(vectors=False)["version"].to_pylist()
    one, two, three = list(store.tree.versions)[1:]
    assert (made.count(one), made.count(two), made.count(three)) == (60, 30, 0)
    assert [row["trunk"] for row in stage_rows(store)] == [one, one, one]
    assert stage_rows(store)[-1]["closed_to_learnt_s"] > 0


def test_rows_are_pooled_features_of_the_trunk_that_was_learnt(stream: Trunk) -> None:
    stream.land("one", CATEGORIES[:3])
    order = stream.learn()
    store = Store.open(stream.config.root)
    trunk = embedder_from_bytes(store.artifact(order.version_id, STUDENT))
    assert trunk.spec.head == "discriminant"
    rows = store.gallery_rows()
    made = rows.filter(np.array([v == order.version_id for v in rows["version"].to_pylist()]))
    from stream_odml.ingest.decode import decode_image
    from stream_odml.store.tables import decoded

    pixels = np.stack([decode_image(image, 16, 1 << 20) for c in CATEGORIES[:3] for image in c.images])
    h = embed(trunk, pixels)[made["row"].to_numpy()]
    stored = decoded(made, store.dim)
    assert np.abs(stored - h).max() <= np.abs(h).max() / 250


def test_an_image_that_is_gone_stays_in_the_sums_by_what_is_stored_of_it(
    stream: Trunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stream_odml.ingest import decode, rows
    from stream_odml.ingest.reasons import BadImage, Reason

    stream.land("one", CATEGORIES[:3])
    stream.land("two", CATEGORIES[3:6])
    gone, whole = (
        {CATEGORIES[0].images[0], CATEGORIES[1].images[4], CATEGORIES[4].images[2]},
        decode.decode_image,
    )

    def fails_for_some(data: bytes, size: int, max_pixels: int) -> object:
        if data in gone:
            raise BadImage(Reason.OUT_OF_MEMORY, "more than there is")
        return whole(data, size, max_pixels)

    monkeypatch.setattr(rows, "decode_image", fails_for_some)
    for _ in range(2):
        stream.learn()
        assert stream.sums_are_of_what_is_stored()


def test_what_is_forgotten_while_a_trunk_is_learnt_is_not_in_its_sums(stream: Trunk) -> None:
    stream.land("one", CATEGORIES[:3])
    order = stream.stages.next_order()
    assert order is not None
    run = StageRun(
        stream.config, order, Store.open(stream.config.root), World(), Place(), lambda progress: None
    )
    run.open()
    while run.next_step < run.total_steps:
        run.step()
    result = run.finish()
    stream.writer.forget("class", CATEGORIES[1].class_name, 10)
    stream.stages.commit(result)
    assert stream.sums_are_of_what_is_stored()
    store = Store.open(stream.config.root)
    assert CATEGORIES[1].class_name not in store.head_of(store.tree.head).names
