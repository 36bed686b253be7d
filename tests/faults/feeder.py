"""Producers of a stream under fault: shards in the inbox and images over HTTP, and every confirmation remembered."""

from __future__ import annotations

import io
import itertools
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from stream_odml.client import Client, ClientError, NewImage
from stream_odml.ingest.landing import NewItem, land_items
from tests.faults.truth import Confirmed, Truth

CLASSES, IMAGES, SIZE = 4, 4, 16
"""Of a shard; a picture's edge in pixels."""
PUSH_IMAGES = 2


def picture(name: str, number: int) -> bytes:
    """A picture of a class: its pattern under a little noise, the same whenever it is asked."""
    pattern = np.random.default_rng([*name.encode()]).integers(0, 256, (SIZE, SIZE, 3))
    noise = np.random.default_rng([*name.encode(), number]).integers(-40, 40, pattern.shape)
    sink = io.BytesIO()
    Image.fromarray(np.clip(pattern + noise, 0, 255).astype(np.uint8)).save(sink, "PNG")
    return sink.getvalue()


class Feeder:
    """Lands a shard every ``every_s`` seconds and pushes every ``2 * every_s``, until :meth:`stop`.

    New classes come only up to ``classes()`` in all: else what lands is of known ones and closes no task.
    """

    def __init__(
        self,
        inbox: Path,
        url: Callable[[], str],
        truth: Truth,
        every_s: float,
        classes: Callable[[], int],
    ) -> None:
        self._inbox, self._url, self._truth, self._every_s = inbox, url, truth, every_s
        self._most = classes
        self._numbers, self._classes = itertools.count(), 0
        self._refused: list[int] = []
        """First classes of shards that the disk refused: they come with a later one, or their task would stay open."""
        self._lock, self._stop = threading.Lock(), threading.Event()
        self.pushes_confirmed = 0
        self.full = 0
        """Landings that the disk refused."""
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._land_all, self._push_all)
        ]

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End; a push that was begun is repeated until it is confirmed. Harmless when repeated."""
        self._stop.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join(timeout=120)

    def land(self) -> Confirmed:
        """Land one shard now; returns when its producer may forget it. Raises OSError."""
        with self._lock:
            number = next(self._numbers)
            if self._refused:
                first = self._refused.pop()
            else:
                if self._classes < self._most() or self._classes == 0:
                    self._classes += CLASSES
                first = max(0, self._classes - CLASSES)
        name = f"shard-{number:05d}"
        pictures = [(f"c{first + c:05d}", number * IMAGES + i) for c in range(CLASSES) for i in range(IMAGES)]
        items = {f"{name}/{i}": kind for i, (kind, _) in enumerate(pictures)}
        self._truth.offer(items)
        new = [
            NewItem(picture(*seen), seen[0], item_id=item) for item, seen in zip(items, pictures, strict=True)
        ]
        try:
            land_items(self._inbox, name, new)
        except OSError:
            with self._lock:
                self._refused.append(first)
            raise
        return self._truth.confirm(f"{name}.parquet", items)

    def _land_all(self) -> None:
        while not self._stop.wait(self._every_s):
            try:
                self.land()
            except OSError:  # the fault of the moment: a full or read-only disk refuses the producer too
                self.full += 1

    def _push_all(self) -> None:
        for number in itertools.count():
            if self._stop.wait(2 * self._every_s):
                return
            items = {f"push-{number:05d}/{i}": f"c{i:05d}" for i in range(PUSH_IMAGES)}
            self._truth.offer(items)
            self._push(f"key-{number:05d}", items)

    def _push(self, key: str, items: dict[str, str]) -> None:
        """The same key until the service confirms it: that is what the key is for."""
        new = [NewImage(picture(kind, 900_000), kind, item_id=item) for item, kind in items.items()]
        give_up = time.monotonic() + 90.0
        while time.monotonic() < give_up:
            try:
                with Client(self._url(), timeout=5, retries=0) as client:
                    self._truth.confirm(client.push(new, key=key).shard, items)
                    self.pushes_confirmed += 1
                    return
            except (ClientError, OSError, KeyError, ValueError):
                time.sleep(0.5)
