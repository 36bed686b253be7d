"""Which stages improve what is learnt: when a trunk is moved by itself, and items that are embedded anew after it
moved, worst first, once, as fast as they may be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from stream_odml.ingest.decode import decode_image
from stream_odml.learn.embedder import embed, embedder_from_bytes
from stream_odml.learn.trunk_gap import trunk_need
from stream_odml.pipeline import later_stages
from stream_odml.pipeline.later_stages import mapped_shards, renewal
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.artifacts import CANARIES, HEAD, STUDENT, SUMS
from stream_odml.store.store import Store
from stream_odml.store.tables import decoded
from stream_odml.store.version_metrics import VersionMetrics
from tests.killed import die_at, is_killed
from tests.pipeline.trunk_stream import CATEGORIES, Trunk, learns

RENEWS = {"store": {"renew_per_s": 1e5}}


def moved_twice(folder: Path) -> Trunk:
    """A stream of four tasks whose trunk moved by the third and by the fourth."""
    stream = Trunk(folder, {"trunk": "distilled"}, **RENEWS)
    for number, name in enumerate(("one", "two")):
        stream.land(name, CATEGORIES[3 * number : 3 * number + 3])
        stream.learn()
    order = stream.improve()
    assert order is not None
    assert order.own == ("task-0002",)
    return stream


def shard_of(stream: Trunk, name: str) -> str:
    return next(s.shard_id for s in stream.writer.ledger.shards.values() if s.name == f"{name}.parquet")


def test_mapped_items_are_embedded_anew_once_and_search_has_both_until_then(tmp_path: Path) -> None:
    stream = moved_twice(tmp_path)
    store = stream.writer.store
    slow = store.tree.head
    assert mapped_shards(store) == [shard_of(stream, "one")]
    assert renewal(store) == {"mapped": 30, "exact": 30, "gone": 0}
    assert len(GallerySnapshot.load(store)) == 60
    order = stream.improve()
    assert order is not None
    assert order.kind == "renew"
    version = store.tree.get(store.tree.head)
    assert set(version.artifacts) == {STUDENT, CANARIES, HEAD, SUMS}
    assert store.tree.same_trunk(slow, version.version_id)
    for name in list(store.tree.versions)[1:]:
        assert stream.sums_are_of_what_is_stored(name)
    assert mapped_shards(store) == []
    assert renewal(store) == {"mapped": 0, "exact": 60, "gone": 0}
    assert stream.improve() is None
    rows = store.gallery_rows()
    rows = rows.filter(np.array([v == version.version_id for v in rows["version"].to_pylist()]))
    trunk = embedder_from_bytes(store.artifact(slow, STUDENT))
    pixels = np.stack([decode_image(image, 16, 1 << 20) for c in CATEGORIES[:3] for image in c.images])
    h = embed(trunk, pixels)[rows["row"].to_numpy()]
    assert np.abs(decoded(rows, store.dim) - h).max() <= np.abs(h).max() / 250


@pytest.mark.parametrize(
    ("rate", "shown", "renewed"), [(0.0, 0.2, False), (50.0, 0.0, False), (50.0, 0.2, True)]
)
def test_a_trunk_learns_more_where_all_is_embedded_anew_behind_it_and_images_show_what_that_is_worth(
    tmp_path: Path, rate: float, shown: float, renewed: bool
) -> None:
    learning = {
        "trunk": "distilled", "weight_hold": 7.0, "weight_hold_renewed": 2.0,
        "learning_rate": 1e-4, "renewed_learning_rate_factor": 5.0,
    }  # fmt: skip
    stream = Trunk(tmp_path, learning, store={"renew_per_s": rate}, evaluation={"held_out": shown})
    for number, name in enumerate(("one", "two")):
        stream.land(name, CATEGORIES[3 * number : 3 * number + 3])
        stream.learn()
    order = stream.later()
    assert order is not None
    assert order.renewed == renewed
    run = stream.run(order, steps=0)
    settings = run.learner.settings
    assert settings.weight_hold == (2.0 if renewed else 7.0)
    assert settings.learning_rate == pytest.approx(5e-4 if renewed else 1e-4)
    run.close()


def test_a_trunk_is_held_as_where_images_are_gone_when_they_are_seen_to_be(tmp_path: Path) -> None:
    stream = Trunk(tmp_path, {"trunk": "distilled"}, **RENEWS)
    learns(stream, "one", 0, 3)
    learns(stream, "two", 3, 6)
    (Path(stream.inbox) / "one.parquet").unlink()
    order = stream.later()
    assert order is not None
    assert not order.renewed
    stream.stages = stream.new_stages()
    again = stream.later()
    assert again is not None
    assert (again.version_id, again.renewed) == (order.version_id, False)


def test_a_trunk_moves_again_once_all_is_embedded_anew(tmp_path: Path) -> None:
    stream = moved_twice(tmp_path)
    assert renewal(stream.writer.store)["mapped"] == 30
    learns(stream, "three", 6, 9)
    order = stream.improve()
    assert order is not None
    assert order.kind == "renew"
    order = stream.later()
    assert order is not None
    assert (order.kind, order.renewed) == ("slow", True)


def test_worst_first_and_no_more_at_once_than_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(later_stages, "RENEWED_AT_ONCE", 30)
    stream = moved_twice(tmp_path)
    stream.stages._later._rules = later_stages.LaterRules("distilled", 0.0)
    stream.land("three", CATEGORIES[6:9])
    stream.learn()
    assert stream.improve() is not None
    one, two = (shard_of(stream, name) for name in ("one", "two"))
    assert mapped_shards(stream.writer.store) == [one, two], "two maps miss more than one"
    now = [1000.0]
    monkeypatch.setattr("stream_odml.pipeline.later_stages._now", lambda: now[0])
    stream.stages._later._rules = later_stages.LaterRules("distilled", 3.0)

    def renewed() -> list[str] | None:
        order = stream.improve()
        return None if order is None else [shard.shard_id for shard in order.shards]

    assert renewed() == [one]
    assert renewed() is None, "30 items at 3 a second: 10 seconds"
    now[0] += 10.1
    assert renewed() == [two]
    now[0] += 10.1
    assert renewed() is None
    assert stream.sums_are_of_what_is_stored()


def test_an_image_that_is_gone_stays_mapped_and_is_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = moved_twice(tmp_path)
    Path(stream.writer.ledger.shards[shard_of(stream, "one")].uri).unlink()
    served = stream.writer.tree.head
    order = stream.later()
    assert order is not None
    stream.fails(order)
    assert stream.writer.tree.head == served
    assert renewal(stream.writer.store) == {"mapped": 0, "exact": 30, "gone": 30}
    assert stream.improve() is None
    stream.land("three", CATEGORIES[6:9])
    stream.learn()
    order = stream.later()
    assert order is not None
    assert not order.renewed, "the next move is held as one that half of the gallery has to follow"


def test_auto_moves_a_trunk_that_knows_few_classes_where_images_are_held_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stream_odml.learn.trunk_gap.MIN_GAP", -1.0)
    monkeypatch.setattr("stream_odml.learn.trunk_gap.MAX_TRAINED", 0.5)
    for held_out in (0.0, 0.3):
        stream = Trunk(tmp_path / str(held_out), {"trunk": "auto"}, evaluation={"held_out": held_out})
        stream.land("one", CATEGORIES[:3])
        stream.learn()
        stream.land("two", CATEGORIES[3:5])
        stream.learn()
        assert stream.later() is None, "trained on three of five classes"
        stream.land("three", CATEGORIES[5:9])
        stream.learn()
        order = stream.later()
        assert (order is not None) == (held_out > 0)
        assert order is None or order.own == ("task-0002", "task-0003")


@pytest.mark.parametrize("pretrained", [True, False])
def test_auto_spends_nothing_where_the_gap_of_pretrained_weights_is_small(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pretrained: bool
) -> None:
    monkeypatch.setattr("stream_odml.learn.trunk_gap.MIN_GAP", 2.0)
    asked: Any = lambda *args, **_: trunk_need(*args, pretrained=pretrained)  # noqa: E731
    monkeypatch.setattr("stream_odml.pipeline.fast_stage.trunk_need", asked)
    stream = Trunk(tmp_path, {"trunk": "auto"})
    for name, some in (("one", CATEGORIES[:3]), ("two", CATEGORIES[3:9])):
        stream.land(name, some)
        stream.learn()
    need = VersionMetrics.read(stream.writer.tree.get(stream.writer.tree.head).metrics).trunk
    assert need["trained"] == pytest.approx(1 / 3)
    assert set(need) == {"trained", "gap" if pretrained else "from_nothing"}
    assert (stream.later() is None) == pretrained


def _improve(folder: Path, point: str) -> None:
    stream = moved_twice(folder)
    die_at(point)
    stream.improve()


@pytest.mark.slow
@pytest.mark.parametrize(
    "point", ["attempt.after", "stage.before", "stage.after_gallery", "stage.after_versions"]
)
def test_killed_anywhere_items_are_embedded_anew_once(tmp_path: Path, point: str) -> None:
    assert is_killed(_improve, tmp_path, point)
    stream = Trunk(tmp_path, {"trunk": "distilled"}, **RENEWS)
    done = point == "stage.after_versions"
    assert (stream.improve() is None) == done
    assert stream.improve() is None
    assert len(stream.writer.ledger.later_attempts) == 2
    assert stream.sums_are_of_what_is_stored()
    rows = Store.open(stream.config.root).gallery_rows(vectors=False)
    assert rows["version"].to_pylist().count(stream.writer.tree.head) == 30
