"""A whole stream on an object store that throttles: killed in the middle of a stage, it goes on and is served."""

from __future__ import annotations

import contextlib
import json
from itertools import islice
from pathlib import Path

import pytest

from stream_odml.client import Client, ClientError
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.store.store import Store
from tests.faults.harness import StreamProcess, broken_promises, small_config
from tests.ingest.s3_server import NOT_CHECKED, SERVER, make_bucket, s3_options, s3_server
from tests.ingest.throttling import Throttle

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not SERVER, reason=NOT_CHECKED),
]
ROOT, INBOX, SHARDS = "s3://bucket/root", "s3://bucket/inbox", 3


def _land(options: dict[str, str]) -> tuple[dict[str, str], NewItem]:
    """The class of every item, and the last item."""
    landed, glyphs, items = dict[str, str](), glyph_categories(0, images=6, size=20), list[NewItem]()
    for number in range(SHARDS):
        items = [
            NewItem(image, category.class_name, item_id=f"{number}/{i}/{j}")
            for i, category in enumerate(islice(glyphs, 4))
            for j, image in enumerate(category.images)
        ]
        land_items(INBOX, f"shard-{number}", items, options)
        landed |= {str(item.item_id): item.class_name for item in items}
    return landed, items[-1]


def test_killed_in_a_stage_it_goes_on_and_is_served(tmp_path: Path) -> None:
    with s3_server() as port, Throttle(port, share=0.05, seed=1).serving() as throttle:
        make_bucket(port, "bucket")
        direct, weak = s3_options(port), s3_options(throttle.port)
        config = small_config(
            tmp_path / "stream",
            place=ROOT,
            store={"options": weak},
            source={"kind": "s3", "path": INBOX, "storage_options": weak, "poll_s": 0.2},
            learning={
                "base_steps": 300,
                "stage_steps": 10,
                "classes_per_batch": 8,
                "images_per_class": 2,
            },
            cluster={"serve": True, "checkpoint_s": 0.5},
        )
        landed, asked = _land(direct)
        with StreamProcess(config) as stream:
            stream.until(lambda: _has_progress(direct), timeout_s=240)
            stream.kill_tree()
        attempt = next(iter(Store.open(ROOT, direct).ledger.tasks.values())).attempts[0].version_id
        with StreamProcess(config, idle_s=60) as stream:
            stream.until(lambda: attempt in Store.open(ROOT, direct).tree.versions, timeout_s=240)
            stream.until(lambda: _first_hit(direct, asked) == (asked.item_id, attempt))
            stream.interrupt()
            assert stream.wait(120) == 0, stream.tail()
        store = Store.open(ROOT, direct)
        assert broken_promises(store, landed, learnt_shards=SHARDS) == []
        assert len(store.quarantine_rows()) == 0
        assert not store.ledger.in_state("set_aside")
        assert sum(throttle.refused.values()) > 20


def _has_progress(options: dict[str, str]) -> bool:
    with contextlib.suppress(Exception):  # the root is being made
        files = Store.open(ROOT, options).files.list("progress")
        return any(file.path.endswith("progress.safetensors") for file in files)
    return False


def _first_hit(options: dict[str, str], asked: NewItem) -> tuple[str, str] | None:
    with contextlib.suppress(FileNotFoundError, ClientError):
        url = json.loads(Store.open(ROOT, options).files.read("endpoints.json"))["service"]
        with Client(url) as client:
            found = client.search_image(asked.image, k=1)
            return found.hits[0].item_id, found.version
    return None
