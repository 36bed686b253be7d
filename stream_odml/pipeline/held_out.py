"""Held-out images for measuring a stage: drawn by seed, bounded, each read and embedded by one rank only.

Protects: held-out images are read here and nowhere else in a stage. Their number in memory does not grow with the
stream: pixels a batch at a time, vectors of the sample.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby, islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.kept_images import wanted_images
from stream_odml.ingest.reasons import BadImage
from stream_odml.learn.embedder import Embedder, embed, embedder_from_bytes
from stream_odml.learn.world import World
from stream_odml.pipeline.held_out_rows import Floats, HeldOut, assemble, choose, keys_of, share
from stream_odml.pipeline.messages import StageOrder
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.store import Store

BATCH = 256


def shared_held_out(
    store: Store,
    order: StageOrder,
    config: StreamConfig,
    student: Embedder,
    world: World,
    all_ranks: Callable[[Any], list[Any]],
) -> HeldOut | None:
    """Return what to measure a finished stage on; every rank calls this, embeds its part, and all but the first get
    None. `all_ranks` gives the value of each rank to every rank. None also where there are too few images."""
    # Rank 0's choice for all: another may read the store a commit earlier.
    rows = choose(store, order.parent, order.own, config.evaluation, config.seed) if not world.rank else None
    keys = all_ranks(None if rows is None else keys_of(rows))[0]
    parent = embedder_from_bytes(store.artifact(order.parent, STUDENT))
    mine = keys[share(len(keys), world.rank, world.size)]
    size, max_pixels = config.model.image_size, config.ingest.max_pixels
    parts = all_ranks(embed_images(store, mine, (student, parent), size, max_pixels, world.device))
    if rows is None:
        return None
    there = np.concatenate([part[0] for part in parts])
    fresh, before = (np.concatenate([part[1][i] for part in parts]) for i in range(2))
    shards = [shard.shard_id for shard in order.shards]
    return assemble(store, order.parent, shards, rows, there, fresh, before)


def embed_images(
    store: Store,
    keys: Sequence[tuple[str, str]],
    models: Sequence[Embedder],
    size: int,
    max_pixels: int,
    device: str | torch.device,
) -> tuple[NDArray[np.bool_], list[Floats]]:
    """Return which of the (shard, item) keys have an image that can be read, and those embedded by each model on
    `device`. One that was forgotten while this was read, or that does not decode, is left out."""
    there = np.zeros(len(keys), bool)
    vectors: list[list[Floats]] = [[] for _ in models]
    images = _pixels(store, keys, size, max_pixels)
    while batch := list(islice(images, BATCH)):
        there[[at for at, _ in batch]] = True
        pixels = np.stack([image for _, image in batch])
        for found, model in zip(vectors, models, strict=True):
            found.append(embed(model, pixels, device))
    empty = [np.empty((0, model.out_dim), np.float32) for model in models]
    return there, [np.concatenate([e, *parts]) for e, parts in zip(empty, vectors, strict=True)]


def _pixels(
    store: Store, keys: Sequence[tuple[str, str]], size: int, max_pixels: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for shard, found in groupby(enumerate(keys), key=lambda numbered: numbered[1][0]):
        items = {number: item for number, (_, item) in found}
        images = wanted_images(store.files, f"holdout/{shard}.parquet", set(items.values()))
        for number, item in items.items():
            if (image := images.get(item)) is not None:
                # It was read when it was indexed; what counts is that nothing else is lost with it.
                with contextlib.suppress(BadImage):
                    yield number, decode_image(image, size, max_pixels)
