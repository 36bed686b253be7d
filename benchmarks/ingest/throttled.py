"""A stream whose object store throttles: its source once, and once its root and everything else it reads and writes."""

from __future__ import annotations

import tempfile
import time
import urllib.request
from itertools import islice

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.beside import beside
from benchmarks.common import Report
from benchmarks.ingest.live import CATEGORIES, IMAGES, Live, stream_config
from stream_odml.cluster.session import run_stream
from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.store.store import Store

SHARE = {"source": 0.3, "root": 0.1}
"""Of requests that fail. Ours are asked again six times, and then later; a root that fails so often is very ill."""
OUTAGE = 18
"""Requests that are all refused, one after the other, in the middle of it: three times one request's tries, so that
polls and reads give up. Over six tries the client pauses for half a minute: ten times as many would be minutes."""


def measure(report: Report, seed: int) -> None:
    """Nothing lost, doubled or quarantined; how much was refused, and what the stream's metrics say of it."""
    for place, share in SHARE.items():
        with tempfile.TemporaryDirectory() as folder, beside("tests.ingest.s3_server", "bucket") as server:
            if server is None:
                return
            words = [str(server["port"]), str(share), str(seed)]
            with beside("tests.ingest.throttling", *words) as throttle:
                _stream(report, seed, place, folder, server["options"], throttle)


def _stream(
    report: Report, seed: int, place: str, folder: str, direct: dict[str, str], throttle: dict[str, str]
) -> None:
    weak = {**direct, "AWS_ENDPOINT_URL": throttle["url"]}
    config = _config(seed, folder, weak, root=place == "root")
    shards, began = 3 if report.quick else 10, time.perf_counter()
    with run_stream(config) as session:
        live = Live(session, seed)
        glyphs, names, items = glyph_categories(seed, images=IMAGES), [], []
        for number in range(shards):
            items = [
                NewItem(image, category.class_name, f"{number}/{category.class_name}/{i}")
                for category in islice(glyphs, CATEGORIES)
                for i, image in enumerate(category.images)
            ]
            land_items("s3://bucket/inbox", f"s-{number}", items, direct)
            names.append(f"s-{number}.parquet")
            if number == shards // 2 and place == "source":
                httpx.post(throttle["control"], content=str(OUTAGE)).raise_for_status()
        live.find((items[-1].item_id or "", items[-1].image))
        complete_task("s3://bucket/inbox", "all", names, direct)
        live.wait(lambda: live.status()["stages_committed"] == 1, f"the stage with a throttling {place}")
        retries = _retries(session.endpoints.metrics)
    counts = httpx.get(throttle["control"]).raise_for_status().json()
    passed = counts.pop("pass", 0)
    store = Store.open(config.root, direct if place == "root" else None)
    first = store.tree.root
    ids = [r["item_id"] for r in store.gallery_rows(vectors=False).to_pylist() if r["version"] == first]
    twice, wrong = len(ids) - len(set(ids)), abs(len(set(ids)) - shards * CATEGORIES * IMAGES)
    bad = len(store.quarantine_rows()) + len(store.ledger.in_state("set_aside"))
    report.row(
        part="throttled", place=place, seed=seed, share=SHARE[place], refused=counts,
        passed=passed, retries=retries, items=len(ids), twice=twice, lost=wrong, taken_for_bad=bad,
        seconds=time.perf_counter() - began,
    )  # fmt: skip
    report.figure(f"throttled_{place}_items_lost_or_twice", twice + wrong)
    report.figure(f"throttled_{place}_taken_for_bad", bad)
    report.figure(f"throttled_{place}_requests_refused", sum(counts.values()))
    report.figure(f"throttled_{place}_retries_counted", sum(retries.values()))


def _config(seed: int, folder: str, options: dict[str, str], *, root: bool) -> StreamConfig:
    config = stream_config(folder, seed).model_dump()
    config["source"] = {
        "kind": "s3", "path": "s3://bucket/inbox", "storage_options": options, "poll_s": 0.2,
    }  # fmt: skip
    if root:
        config |= {"root": "s3://bucket/root", "store": {"options": options}}
    return StreamConfig.model_validate(config)


def _retries(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    return {
        sample.labels["of"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "stream_odml_retries_total"
    }
