"""A small stream to be hurt, and shards for it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import yaml

from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.landing import NewItem, land_items
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.store import Store
from tests.faults import process
from tests.faults.oracle import violations
from tests.faults.truth import Truth

CATEGORIES, IMAGES = 4, 6


def small_config(root: Path, place: str | None = None, **changes: Any) -> Path:
    """A stream that learns a task of three shards in seconds, without serving; returns its YAML file.

    ``place``: the stream root, when it is no local folder; the file is put beside ``root`` all the same.
    """
    config: dict[str, Any] = {
        "name": "faults",
        "root": place or str(root),
        "method": "distilled",  # trains a while in every stage, in which it can be hurt
        "model": {"dim": 16, "image_size": 16},
        "learning": {"base_steps": 12, "stage_steps": 12, "classes_per_batch": 8, "images_per_class": 2},
        "boundary": {"new_classes": 3 * CATEGORIES, "images": None, "age_s": None},
        "gate": {"enabled": False},
        "evaluation": {"held_out": 0.2},
        "cluster": {"serve": False, "checkpoint_s": 0.5},
        "service": {"port": 0},
        "metrics": {"port": 0},
    } | changes
    path = root.parent / f"{root.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def land_shards(root: Path, count: int, first: int = 0) -> dict[str, str]:
    """Land ``count`` shards of glyphs; returns the class of every item, by id."""
    landed: dict[str, str] = {}
    glyphs = glyph_categories(0, images=IMAGES, size=20, start=first * CATEGORIES)
    for number in range(first, first + count):
        items = [
            NewItem(image, category.class_name, item_id=f"{number}/{i}/{j}")
            for i, category in enumerate(islice(glyphs, CATEGORIES))
            for j, image in enumerate(category.images)
        ]
        land_items(root / "inbox", f"shard-{number:03d}", items)
        landed |= {str(item.item_id): item.class_name for item in items}
    return landed


class StreamProcess(process.StreamProcess):
    """`stream-odml run` that ends by itself once it has been idle for ``idle_s`` seconds."""

    def __init__(
        self, config: Path, idle_s: float = 3.0, environment: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(config, "--until-idle", str(idle_s), environment=environment)


def open_store(root: Path) -> Store:
    """The store as a reader sees it."""
    return Store.open(str(root))


def broken_promises(store: Store, landed: Mapping[str, str], learnt_shards: int | None = None) -> list[str]:
    """Return every broken promise in words, for a test that knows its items by heart.

    ``landed``: class by item id; ``learnt_shards``: how many shards must be learnt.
    """
    found = violations(store, Truth(tried=dict(landed)), learnt=learnt_shards is not None)
    snapshot = GallerySnapshot.load(store)
    served = {snapshot.item(int(row)).item_id for row in snapshot.rows()}
    lost = [f"item {item} is lost" for item in sorted(landed.keys() - served)]
    learnt = sum(len(store.ledger.tasks[task].shard_ids) for task in store.tree.learnt())
    if learnt_shards not in (None, learnt):
        lost.append(f"{learnt} shards are learnt, expected {learnt_shards}")
    return [violation.text for violation in found] + lost
