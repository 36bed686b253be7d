"""Under a discriminant head the first task is learnt step by step; later ones are not, and what another trunk had
embedded is embedded anew first. Sums are of what is stored, whatever was lost on the way."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stream_odml.cli.versions_table import stage_rows
from stream_odml.learn.embedder import embed, embedder_from_bytes
from stream_odml.learn.world import World
from stream_odml.pipeline.stage_run import StageRun
from stream_odml.store.artifacts import BACKWARD, CANARIES, FORWARD, HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from tests.pipeline.trunk_stream import CATEGORIES, Trunk


@pytest.fixture
def stream(tmp_path: Path) -> Trunk:
    return Trunk(tmp_path)


def test_base_then_anew_then_by_sums_alone(stream: Trunk) -> None:
    stream.land("one", CATEGORIES[:3])
    stream.land("two", CATEGORIES[3:6])
    base = stream.learn()
    stream.land("three", CATEGORIES[6:9])
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


def cannot_be_read(monkeypatch: pytest.MonkeyPatch, gone: set[bytes]) -> None:
    """Some images, from now on."""
    from stream_odml.ingest import decode, rows
    from stream_odml.ingest.reasons import BadImage, Reason

    whole = decode.decode_image

    def fails_for_some(data: bytes, size: int, max_pixels: int) -> object:
        if data in gone:
            raise BadImage(Reason.OUT_OF_MEMORY, "more than there is")
        return whole(data, size, max_pixels)

    monkeypatch.setattr(rows, "decode_image", fails_for_some)


def test_an_image_that_is_gone_stays_in_the_sums_by_what_is_stored_of_it(
    stream: Trunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.land("one", CATEGORIES[:3])
    stream.land("two", CATEGORIES[3:6])
    cannot_be_read(monkeypatch, {CATEGORIES[0].images[0], CATEGORIES[1].images[4], CATEGORIES[4].images[2]})
    for _ in range(2):
        stream.learn()
        assert stream.sums_are_of_what_is_stored()


def test_what_is_forgotten_while_a_trunk_is_learnt_is_not_in_its_sums(
    stream: Trunk, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream.land("one", CATEGORIES[:3])
    # Of the class that is forgotten, and of one that stays: what the map moves counts, and goes, like all others.
    lost = {*CATEGORIES[1].images[2:7], *CATEGORIES[0].images[:5]}
    cannot_be_read(monkeypatch, lost)
    order = stream.stages.next_order()
    assert order is not None
    run = StageRun(stream.config, order, Store.open(stream.config.root), World(), lambda progress: None)
    run.open()
    while run.learner.next_step < run.learner.total_steps:
        run.step()
    result = run.finish()
    stream.writer.forget("class", CATEGORIES[1].class_name, 10)
    stream.stages.commit(result)
    assert stream.sums_are_of_what_is_stored()
    store = Store.open(stream.config.root)
    assert CATEGORIES[1].class_name not in store.head_of(store.tree.head).names
