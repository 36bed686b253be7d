"""The other ways in, end to end: an S3 prefix, a Delta table followed by version, images pushed over HTTP."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from itertools import islice

import pyarrow as pa
from deltalake import write_deltalake

from benchmarks.beside import beside
from benchmarks.common import Report, percentile
from benchmarks.ingest.live import Live, stream_config
from stream_odml.client import Client
from stream_odml.client.calls import NewImage
from stream_odml.cluster.session import run_stream
from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.glyphs import GlyphCategory, glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.store.store import Store

SHARDS = 5


def measure(report: Report, seed: int) -> None:
    """A stream for each source: what lands is found, a task is learnt from it, and nothing is taken twice."""
    with tempfile.TemporaryDirectory() as folder:
        _delta_and_push(report, folder, seed)
    with tempfile.TemporaryDirectory() as folder, beside("tests.ingest.s3_server", "bucket") as server:
        if server is not None:
            _s3(report, folder, seed, server["options"])


def _s3(report: Report, folder: str, seed: int, options: dict[str, str]) -> None:
    source = {"kind": "s3", "path": "s3://bucket/inbox", "storage_options": options, "poll_s": 0.2}
    with run_stream(_config(folder, seed, source)) as session:
        live, seconds, names = Live(session, seed), [], []
        for number, categories in enumerate(_categories(seed)):
            items = _items(categories, f"s3-{number}")
            land_items("s3://bucket/inbox", f"s3-{number}", items, options)
            names.append(f"s3-{number}.parquet")
            seconds.append(live.find((items[-1].item_id or "", items[-1].image)))
        land_items(
            "s3://bucket/inbox", "s3-0", _items(next(_categories(seed)), "s3-0"), options
        )  # a repetition
        complete_task("s3://bucket/inbox", "all", names, options)
        live.wait(lambda: live.status()["stages_committed"] == 1, "the stage from S3")
    _check(report, folder, "s3", seconds, SHARDS + 1)


def _delta_and_push(report: Report, folder: str, seed: int) -> None:
    source = {"kind": "delta", "path": f"{folder}/photos", "poll_s": 0.2}
    with run_stream(_config(folder, seed, source)) as session:
        live, seconds = Live(session, seed), []
        for number, categories in enumerate(_categories(seed)):
            items = _items(categories, f"delta-{number}")
            write_deltalake(f"{folder}/photos", _table(items), mode="append")
            seconds.append(live.find((items[-1].item_id or "", items[-1].image)))
        _check(report, folder, "delta", seconds, SHARDS)
        seconds = []
        with Client(session.endpoints.service) as client:
            for number, categories in enumerate(_categories(seed + 1)):
                items = _items(categories, f"push-{number}")
                images = [NewImage(item.image, item.class_name, item.item_id) for item in items]
                began = time.perf_counter()
                for _ in range(2):  # the second time as a client that lost the first answer
                    for start in range(0, len(images), 50):
                        client.push(images[start : start + 50], key=f"push-{number}-{start}")
                live.find((items[-1].item_id or "", items[-1].image))
                seconds.append(time.perf_counter() - began)
        time.sleep(2.0)  # a shard that came twice would show by now
        _check(report, folder, "push", seconds, SHARDS + 2 * SHARDS)


def _check(report: Report, folder: str, source: str, seconds: list[float], shards: int) -> None:
    store = Store.open(f"{folder}/root")
    ids = store.gallery_rows(vectors=False)
    tier1 = [
        row
        for row in ids.to_pylist()
        if row["item_id"].startswith(source) and row["version"].startswith("v0000")
    ]
    twice = len(tier1) - len({row["item_id"] for row in tier1})
    report.row(
        part="sources", source=source, seconds=seconds, shards=len(store.ledger.shards), expected_shards=shards,
        items=len(tier1), twice=twice, stages=len(store.tree.versions) - 1,
    )  # fmt: skip
    report.figure(f"{source}_searchable_s_p95", percentile(seconds, 95))
    report.figure(f"{source}_items_lost_or_twice", abs(len(tier1) - 100 * SHARDS) + twice)


def _config(folder: str, seed: int, source: dict[str, object]) -> StreamConfig:
    config = stream_config(folder, seed)
    return StreamConfig.model_validate({**config.model_dump(), "source": source})


def _categories(seed: int) -> Iterator[list[GlyphCategory]]:
    categories = glyph_categories(seed, images=20)
    for _ in range(SHARDS):
        yield list(islice(categories, 5))


def _items(categories: list[GlyphCategory], name: str) -> list[NewItem]:
    return [
        NewItem(image, category.class_name, f"{name}/{category.class_name}/{number}")
        for category in categories
        for number, image in enumerate(category.images)
    ]


def _table(items: list[NewItem]) -> pa.Table:
    return pa.table(
        {
            "image": pa.array([item.image for item in items], pa.binary()),
            "class_name": [item.class_name for item in items],
            "id": [item.item_id for item in items],
        }
    )
