"""The rows of a task, read without the rest of the gallery, are those that the whole gallery would give."""

from __future__ import annotations

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest

from stream_odml.ingest.cache import CacheMember, PixelCache
from stream_odml.ingest.landing import land_items
from stream_odml.ingest.rows import Block, decode_rows
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import DirectorySource
from stream_odml.pipeline import task_cache
from stream_odml.pipeline.task_cache import (
    Readers,
    cache_members,
    fill_cache,
    rows_digest,
    task_rows,
)
from stream_odml.store.select import select_rows
from stream_odml.store.store import Store
from stream_odml.store.tables import gallery_rows
from stream_odml.store.writer import IngestBatch, Writer
from tests.cluster.small_root import DIM, artifacts, claim, shard
from tests.ingest.helpers import some_items

MAX_PIXELS = 10_000


def land(writer: Writer, name: str, items: list[int], random: np.random.Generator) -> ShardRef:
    """One shard with these items, each of a class by its number."""
    ref = shard(name)
    writer.record_landed([ref])
    rows = gallery_rows(
        item_ids=[f"item {i}" for i in items],
        class_names=[f"class {i % 7}" for i in items],
        shard_ids=ref.shard_id,
        rows=random.choice(100, len(items), replace=False),
        vectors=random.normal(size=(len(items), DIM)).astype(np.float32),
        version=writer.tree.head,
        held_out=[i % 5 == 0 for i in items],
    )
    writer.commit_ingest(IngestBatch([ref.shard_id], rows))
    return ref


def naive(store: Store, shards: list[ShardRef]) -> list[tuple[str, int, str]]:
    """(shard, row, item) by the rule applied to everything there is."""
    rows = store.metadata()
    living = rows.take(pa.array(select_rows(rows, store.ledger, store.tree, store.tree.head).picked))
    place = {ref.shard_id: number for number, ref in enumerate(shards)}
    mine = [r for r in living.to_pylist() if r["shard_id"] in place]
    keys = sorted((place[r["shard_id"]], r["row"], r["item_id"]) for r in mine)
    return [(shards[at].shard_id, row, item) for at, row, item in keys]


@pytest.mark.parametrize("seed", range(4))
def test_replaced_and_forgotten_items_are_left_out(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    writer = claim(tmp_path / "root")
    refs = []
    for number in range(12):  # few items in many shards: most are replaced, some several times
        refs.append(land(writer, f"s{number}", random.choice(40, 9, replace=False).tolist(), random))
        if number == 5:
            task = refs[2:5]
            writer.close_task("task-0001", [r.shard_id for r in task], "test")
            version = writer.begin_attempt("task-0001")
            again = writer.store.gallery_rows().slice(0, 0)
            writer.commit_stage(version, writer.tree.head, "task-0001", artifacts(writer, version), again)
        if number in (6, 9):
            writer.forget("item", f"item {random.integers(40)}")
            writer.forget("class", f"class {random.integers(7)}")
    lean = Store.open(str(tmp_path / "root"), keep_gallery=False)
    whole = Store.open(str(tmp_path / "root"))
    for chosen in (refs[2:5], refs[5:6], refs[8:], [refs[7], refs[1]]):
        rows = task_rows(lean, chosen, lean.tree.head)
        found = list(zip(*(rows[c].to_pylist() for c in ("shard_id", "row", "item_id")), strict=True))
        assert found == naive(whole, chosen)
        assert found == naive(lean, chosen)
        members = list(cache_members(rows, chosen))
        assert [(m.shard_id, int(r)) for m in members for r in m.rows] == [key[:2] for key in found]
        assert [n for m in members for n in m.class_names] == rows["class_name"].to_pylist()
        assert rows_digest(rows, chosen) == rows_digest(task_rows(whole, chosen, whole.tree.head), chosen)
    writer.release()


def test_a_task_of_which_nothing_is_left(tmp_path: Path) -> None:
    writer = claim(tmp_path / "root")
    ref = land(writer, "a", [1, 2], np.random.default_rng(0))
    assert len(task_rows(writer.store, [ref], writer.tree.head)) == 2
    writer.forget("shard", ref.shard_id)
    assert len(task_rows(writer.store, [ref], writer.tree.head)) == 0
    assert len(task_rows(writer.store, [shard("unknown")], writer.tree.head)) == 0
    writer.release()


def cache_of(folder: Path, refs: list[ShardRef], images: int) -> PixelCache:
    names = [f"class {n % 3}" for n in range(images)]
    members = [CacheMember(ref.shard_id, np.arange(images, dtype=np.int32), names) for ref in refs]
    return PixelCache(folder, members, 8)


def twelve_shards(folder: Path) -> tuple[list[ShardRef], PixelCache]:
    """Shards of four images each, and the empty cache of them all."""
    for number in range(12):
        land_items(folder / "inbox", f"s{number:02d}", some_items(4, first=4 * number))
    refs = DirectorySource(folder / "inbox").poll(set())
    return refs, cache_of(folder / "cache", refs, 4)


def fill(cache: PixelCache, refs: list[ShardRef], readers: Readers, hang_s: float = 60.0) -> None:
    fill_cache(cache, refs, lambda uri: None, max_pixels=MAX_PIXELS, hang_s=hang_s, readers=readers)


def unused_readers() -> Readers:
    """Whoever asks them for anything fails."""
    return cast("Readers", object())


def test_a_small_task_is_decoded_without_another_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_cache, "LOCAL_DECODE_S", 60.0)  # however busy the machine is
    refs, cache = twelve_shards(tmp_path)
    fill(cache, refs, unused_readers())
    assert cache.is_complete
    for member, ref in enumerate(refs):
        block = next(decode_rows(ref, range(4), 8, MAX_PIXELS))
        assert isinstance(block, Block)
        assert np.array_equal(cache.pixels[4 * member : 4 * member + 4], block.pixels)


def test_what_hangs_here_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refs, cache = twelve_shards(tmp_path)
    asked: list[int] = []
    monkeypatch.setattr(task_cache, "LOCAL_DECODE_S", 0.2)
    monkeypatch.setattr(task_cache, "decode_rows", lambda *_: threading.Event().wait())
    others = SimpleNamespace(spread=lambda wanted, _: map(asked.append, [len(wanted)]))
    with pytest.raises(TypeError):  # what is asked of the others comes back as nothing
        fill(cache, refs, cast("Readers", others))
    assert asked == [12], "the others were not asked for all of it"


def test_all_of_it_can_be_decoded_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_cache, "LOCAL_DECODE_S", -1.0)
    refs, cache = twelve_shards(tmp_path)
    Path(refs[5].uri).write_bytes(b"")
    fill(cache, refs, Readers())
    assert cache.is_complete
    assert np.flatnonzero(cache.lost()).tolist() == [20, 21, 22, 23]
