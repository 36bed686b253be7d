"""Tier 1 against a bare loop, the cache against decoding each epoch, polling and the driver's beat with many shards."""

from __future__ import annotations

import io
import json
import os
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.common import Report, percentile
from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.ingest.cache import CacheMember, PixelCache
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.ingest.rows import Block, decode_rows
from stream_odml.ingest.shard import ShardRef
from stream_odml.ingest.sources import DirectorySource
from stream_odml.learn.embedder import Embedder, build_embedder
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.indexing import IndexOptions, index_shard
from stream_odml.pipeline.stages import waiting_shards
from stream_odml.storage.files import open_files
from stream_odml.store.ledger import LedgerState

SIZE, BATCH = 32, 256


def measure_tier1(report: Report, seed: int) -> None:
    """Images a second of `index_shard` over those of the plainest loop: read, decode with Pillow, embed."""
    torch.set_num_threads(1)
    images, repeats = (1_000, 2) if report.quick else (4_000, 7)
    model = build_embedder(EmbedderSpec("conv4", dim=64, image_size=SIZE), seed)
    with tempfile.TemporaryDirectory() as folder:
        ref = _landed(Path(folder) / "inbox", images, seed)
        files, options = open_files(f"{folder}/root"), IndexOptions(64_000_000, False, 0.0)
        ours, bare = [], []
        for _ in range(repeats):  # in turn, so that a busy moment of the machine meets both
            bare.append(_seconds(lambda: _bare_loop(ref, model)))
            ours.append(_seconds(lambda: index_shard(ref, model, "v0000-00000000", files, options)))
    report.row(part="speed", seed=seed, images=images, ours_s=ours, bare_s=bare)
    # Each is compared with the one just before it: others' load comes and goes within minutes.
    report.figure("tier1_over_bare_loop", float(np.median(np.divide(bare, ours))))
    report.figure("tier1_images_per_s", images / float(np.median(ours)))


def _bare_loop(ref: ShardRef, model: Embedder) -> list[torch.Tensor]:
    vectors = []
    with torch.inference_mode():
        for batch in pq.ParquetFile(ref.uri).iter_batches(BATCH, columns=["image"]):
            pixels = [_plain_decode(data.as_py()) for data in batch.column(0)]
            x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float().div(255.0)
            vectors.append(model(x))
    return vectors


def _plain_decode(data: bytes) -> Any:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def measure_cache(report: Report, seed: int) -> None:
    """An epoch of batches from the pixel cache against an epoch of decoding the same shard."""
    images, epochs = (1_000, 2) if report.quick else (4_000, 5)
    with tempfile.TemporaryDirectory() as folder:
        ref = _landed(Path(folder) / "inbox", images, seed)
        cache = PixelCache(
            Path(folder) / "cache", [CacheMember(ref.shard_id, range(images), ["c"] * images)], SIZE
        )
        for block in decode_rows(ref, range(images), SIZE, DEFAULT_MAX_PIXELS, BATCH):
            assert isinstance(block, Block)
            cache.write(0, block.rows, block.pixels)
        cache.finish()
        order = np.random.default_rng(seed).permutation(images)
        batches = [order[start : start + 128] for start in range(0, images, 128)]
        cached = [_seconds(lambda: [cache.batch(b) for b in batches]) for _ in range(epochs)]
        decoded = [
            _seconds(lambda: list(decode_rows(ref, range(images), SIZE, DEFAULT_MAX_PIXELS, 128)))
            for _ in range(epochs)
        ]
    report.row(part="cache", seed=seed, images=images, cached_s=cached, decoded_s=decoded)
    report.figure("cached_over_decode_speedup", float(np.median(decoded) / np.median(cached)))


def measure_poll(report: Report, seed: int) -> None:
    """A prefix with 10^5 known shards: seconds of one poll, and what memory grows by over many."""
    count, polls = (10_000, 5) if report.quick else (100_000, 20)
    with tempfile.TemporaryDirectory() as folder:
        for number in report.track(range(count), "files written"):
            handle = os.open(f"{folder}/{number:06d}.parquet", os.O_CREAT | os.O_WRONLY)
            os.write(handle, b"%d" % number)
            os.close(handle)
        known = {ref.stamp for ref in DirectorySource(folder, max_new=count).poll(set())}
        source, before = DirectorySource(folder), _resident_mib()
        seconds = [_seconds(lambda: source.poll(known)) for _ in range(polls)]
        grown = _resident_mib() - before
        Path(folder, "new.parquet").write_bytes(b"x")
        found = [ref.name for ref in source.poll(known)]
    report.row(part="poll", seed=seed, shards=count, seconds=seconds, grown_mib=grown, found=found)
    report.figure("poll_100k_shards_s" if count == 100_000 else "poll_10k_shards_s", max(seconds))
    report.figure("poll_memory_growth_mib", grown)


def measure_ledger(report: Report, seed: int) -> None:
    """What 10^5 settled shards add to each look of the driver at its ledger."""
    count = 10_000 if report.quick else 100_000
    rows = [
        ledger_entry(i, "landed", i, json.loads(json.dumps(plain_ref(i).to_dict()))) for i in range(count)
    ]
    rows += [
        ledger_entry(count + i, "indexed", i, {"rows": 10, "classes": {f"c{i % 5000}": 10}})
        for i in range(count)
    ]
    rows += [
        ledger_entry(2 * count + i, "assigned", i, {"reason": "images"}, f"task-{i // 1000:04d}")
        for i in range(count)
    ]
    began = time.perf_counter()
    ledger = LedgerState.replay(rows)
    replay = time.perf_counter() - began
    new = ledger_entry(3 * count, "landed", count, plain_ref(count).to_dict())
    append = [_seconds(lambda: LedgerState.replay([new], ledger)) for _ in range(20)]
    beat = [_seconds(lambda: (list(ledger.landed.values()), waiting_shards(ledger))) for _ in range(100)]
    report.row(part="ledger", seed=seed, shards=count, replay_s=replay, append_s=append, beat_s=beat)
    report.figure("ledger_replay_s", replay)
    report.figure("ledger_append_ms", 1e3 * float(np.median(append)))
    report.figure("ledger_beat_ms", 1e3 * (percentile(beat, 95) or 0.0))


def plain_ref(number: int) -> ShardRef:
    """A reference to a shard that is nowhere."""
    name = f"s{number:06d}.parquet"
    return ShardRef(f"{name}-{'0' * 16}", name, f"/inbox/{name}", "parquet", 100, 0, f"{name}|100|0")


def ledger_entry(seq: int, kind: str, number: int, detail: dict[str, Any], task: str = "") -> dict[str, Any]:
    """A row of a ledger."""
    return {
        "seq": seq, "kind": kind, "subject": plain_ref(number).shard_id, "task": task, "txn": f"i{number // 64}",
        "detail": json.dumps(detail), "time": datetime.now(UTC), "epoch": 1,
    }  # fmt: skip


def _landed(inbox: Path, images: int, seed: int) -> ShardRef:
    inbox.mkdir(parents=True)
    categories = islice(glyph_categories(seed, images=20), images // 20)
    land_items(inbox, "large", [NewItem(image, c.class_name) for c in categories for image in c.images])
    (ref,) = DirectorySource(inbox).poll(set())
    return ref


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
