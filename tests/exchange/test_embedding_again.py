"""After an upgrade: items that were taken over by a map are embedded from their images, worst first, once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from stream_odml.config.stream import StreamConfig, load_config
from stream_odml.exchange import pairs, upgrading
from stream_odml.exchange.upgrading import prepare
from stream_odml.ingest.decode import decode_image
from stream_odml.learn.discriminant import HeadSettings
from stream_odml.learn.embedder import build_embedder, embed
from stream_odml.learn.world import World
from stream_odml.pipeline import later_stages
from stream_odml.pipeline.later_stages import LaterRules, mapped_shards, renewal
from stream_odml.pipeline.messages import StageProgress
from stream_odml.pipeline.sources import open_sources
from stream_odml.pipeline.stage_run import StageRun
from stream_odml.pipeline.stages import Stages
from stream_odml.store.labels import living_rows
from stream_odml.store.store import Store
from stream_odml.store.tables import decoded
from stream_odml.store.writer import Writer
from tests.exchange.test_upgrading import new, stream  # noqa: F401  (fixtures)
from tests.killed import is_killed
from tests.service.test_exact_form import ExactStream

PAIRS_OF_A_SHARD = 9


@pytest.fixture
def upgraded(
    stream: ExactStream,  # noqa: F811
    new: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> StreamConfig:
    """32 items of two shards, of which 9 and 8 are pairs; one more was erased before."""
    monkeypatch.setattr(pairs, "PER_SHARD", PAIRS_OF_A_SHARD)
    stream.writer.forget("item", list(stream.images)[23], 1)
    new.write_text(new.read_text() + "store: {renew_per_s: 100000}\nboundary: {images: null, age_s: null}\n")
    config = load_config(new)
    prepare(stream.root, config).adopt()
    return config


def embed_again(config: StreamConfig) -> list[str] | None:
    """What the driver and the trainer do when nothing else is due: the shards that were embedded again."""
    writer = Writer.claim(config.root, "test", takeover=True)
    try:
        stages = Stages(writer, config.boundary, 1, config.learns_trunk, LaterRules.of(config))
        order = stages.dispatch(StageProgress())
        if order is None:
            return None
        assert order.kind == "renew"
        store = Store.open(config.root)
        run = StageRun(config, order, store, World(), lambda progress: None)
        run.open()
        assert stages.commit(run.finish()) == order.version_id
        run.close()
        return [shard.shard_id for shard in order.shards]
    finally:
        writer.release()


def off(config: StreamConfig, images: dict[str, bytes]) -> np.ndarray:
    """By item, how far what is served is from what the model gives for its image, in shares of its largest entry."""
    store = Store.open(config.root)
    rows = living_rows(store, pa.array(list(images)), store.gallery_schema.names)
    assert len(rows) == 31
    pixels = np.stack([decode_image(images[item], 32, 1 << 20) for item in rows["item_id"].to_pylist()])
    exact, found = embed(build_embedder(config.model, config.seed), pixels), decoded(rows, 256)
    exact, found = (h / np.linalg.norm(h, axis=1, keepdims=True) for h in (exact, found))
    shares: np.ndarray = np.abs(found - exact).max(axis=1) / exact.max(axis=1)
    return shares


def test_mapped_items_become_exact_worst_first_and_what_was_erased_stays_so(
    upgraded: StreamConfig,
    stream: ExactStream,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(later_stages, "RENEWED_AT_ONCE", 1)
    monkeypatch.setattr(later_stages, "RENEWALS", 32)
    store = Store.open(upgraded.root)
    a, _ = store.ledger.shards
    assert (off(upgraded, stream.images) > 0.05).sum() == 31 - 17
    assert [
        found for source in open_sources(upgraded) for found in source.poll(set(store.ledger.shards))
    ] == []
    assert mapped_shards(store) == [a], "of 23 items 14 are mapped; all 8 of the other shard are pairs"
    assert embed_again(upgraded) == [a]
    store.refresh()
    assert renewal(store) == {"mapped": 20, "exact": 11, "gone": 0}, (
        "a fifth of the 14; pairs count with theirs"
    )
    head = pc.field("version") == store.tree.head
    rows = pa.concat_tables([part for _, part in store.scan(["row", "version"], head)])
    assert sorted(rows["row"].to_pylist()) == store.ledger.shards[a].worst_rows.tolist()
    assert (off(upgraded, stream.images) > 0.05).sum() == 11
    assert embed_again(upgraded) == [a]
    assert embed_again(upgraded) is None
    store.refresh()
    assert renewal(store) == {"mapped": 0, "exact": 31, "gone": 0}
    rest = pc.field("version") == store.tree.head
    left = sum(len(part) for _, part in store.scan(["row"], rest))
    assert left == 23 - 3, "each once"
    assert off(upgraded, stream.images).max() < 0.02


@pytest.mark.parametrize(
    "point", [pytest.param("attempt.after", marks=pytest.mark.slow), "stage.after_gallery"]
)
def test_killed_in_between_they_are_embedded_again_once(
    upgraded: StreamConfig,
    stream: ExactStream,  # noqa: F811
    point: str,
) -> None:
    assert is_killed(embed_again, upgraded, point=point)
    assert embed_again(upgraded) is not None
    assert is_killed(embed_again, upgraded, point=point)
    assert embed_again(upgraded) is not None
    assert embed_again(upgraded) is None
    attempts = Store.open(upgraded.root).ledger.later_attempts.values()
    assert [attempt.worst for attempt in attempts] == [True, False]
    assert off(upgraded, stream.images).max() < 0.02


def test_settings_that_pairs_chose_stay_when_items_are_embedded_again(
    stream: ExactStream,  # noqa: F811
    new: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No choice gives a shrinkage of 0.6: what items choose, embedded or not, would show."""
    chosen = HeadSettings(dim=8, shrinkage=0.6)
    monkeypatch.setattr(upgrading, "settings_by_pairs", lambda pairs, config, count: chosen)
    monkeypatch.setattr(pairs, "PER_SHARD", PAIRS_OF_A_SHARD)
    new.write_text(new.read_text() + "store: {renew_per_s: 100000}\nboundary: {images: null, age_s: null}\n")
    config = load_config(new)
    prepare(stream.root, config).adopt()
    versions = [Store.open(config.root).tree.head]
    while embed_again(config) is not None:
        versions.append(Store.open(config.root).tree.head)
    assert len(versions) == 3, "the worst, and the others"
    assert {Store.open(config.root).head_of(version).settings for version in versions} == {chosen}
