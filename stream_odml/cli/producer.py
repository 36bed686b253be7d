"""Producers for the demo: an endless stream of categories, landed shard by shard at a steady pace."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from stream_odml.cli.own_images import raw_items
from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.landing import NewItem, complete_task, land_items
from stream_odml.ingest.reasons import BadImage

PROBE_PX = 16
BASE = "base"
"""Name of the task that a stream begins with."""


@dataclass(frozen=True)
class Category:
    """A class that arrives: its name and its images as encoded bytes."""

    name: str
    images: Sequence[bytes]


@dataclass(frozen=True)
class LandedShard:
    """A shard that the producer landed, when (seconds since the epoch), and one item of it to ask for."""

    name: str
    landed_at: float
    item_id: str
    image: bytes
    class_name: str


def categories_of(path: Path) -> list[Category]:
    """Return all categories of a Parquet file, a tar or a folder, in order of their first image. Of a folder it takes
    what `ingest` would land, under the same classes: the class of an image is the path of its folder, without those
    such as `train` and `images`. Raises ValueError when there is nothing that can be used."""
    by_name: dict[str, list[bytes]] = {}
    for item in raw_items(path):
        by_name.setdefault(item.class_name, []).append(item.image)
    usable = [Category(name, images) for name, images in by_name.items() if len(images) >= 2]
    if len(usable) < 2:
        raise ValueError(
            f"{path} holds {len(usable)} categories with two images or more; at least two are needed. "
            "Expected a Parquet file with the columns image and class_name, a WebDataset tar, or a folder "
            "with a folder of images for each class"
        )
    return usable


@dataclass
class Producer:
    """Lands `per_shard` categories every `every_s` seconds, while `may_land` says that there is room."""

    inbox: str
    categories: Iterator[Category]
    per_shard: int
    every_s: float
    may_land: Callable[[], bool]
    number: int = 0
    """Of the next shard, behind those that landed before."""
    base_shards: int = 0
    """So many shards at the beginning are one task, named before they land, and land without a pause."""
    landed: list[LandedShard] = field(default_factory=list)
    exhausted: bool = False

    def __post_init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="producer", daemon=True)

    def start(self) -> None:
        """Begin to land."""
        self._thread.start()

    def stop(self) -> None:
        """End after the shard in hand."""
        self._stop.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        if self.number < self.base_shards:
            complete_task(
                self.inbox, BASE, [f"{_name(number)}.parquet" for number in range(self.base_shards)]
            )
        while not self._stop.is_set():
            if self.number >= self.base_shards and not self.may_land():
                self._stop.wait(0.2)
                continue
            batch = list(islice(self.categories, self.per_shard))
            if not batch:
                if self.landed:
                    complete_task(self.inbox, f"rest-{self.number:05d}")
                self.exhausted = True
                return
            self._land(batch)
            if self.number > self.base_shards:
                self._stop.wait(self.every_s)

    def _land(self, batch: Sequence[Category]) -> None:
        name = _name(self.number)
        items = [
            NewItem(image, category.name, item_id=f"{name}/{i}/{j}")
            for i, category in enumerate(batch)
            for j, image in enumerate(category.images)
        ]
        land_items(self.inbox, name, items)
        first = next((item for item in items if _is_image(item.image)), None)
        if first is not None and first.item_id is not None:
            self.landed.append(LandedShard(name, time.time(), first.item_id, first.image, first.class_name))
        self.number += 1


def _name(number: int) -> str:
    return f"shard-{number:05d}"


def _is_image(data: bytes) -> bool:
    """Return whether bytes decode as an image; others are quarantined, and never found."""
    try:
        decode_image(data, PROBE_PX, DEFAULT_MAX_PIXELS)
    except BadImage:
        return False
    return True
