"""Held-out images for measuring a stage: drawn by seed, bounded, each read and embedded by one rank only.

Protects: held-out images are read here and nowhere else in a stage. Their number in memory does not grow with the
stream: pixels a batch at a time, vectors of the sample.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from stream_odml.config.stream import EvaluationConfig, StreamConfig
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.reasons import BadImage
from stream_odml.learn.embedder import Embedder, embed, embedder_from_bytes
from stream_odml.learn.world import World
from stream_odml.pipeline.messages import StageOrder
from stream_odml.pipeline.sampling import drawn, rows_of_classes
from stream_odml.search.applying import map_in_place
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.store import Store
from stream_odml.store.tables import vectors_of

Floats = NDArray[np.float32]
BATCH = 256


@dataclass(frozen=True)
class HeldOut:
    """Held-out images of learnt tasks and of the one at hand, as both models embed them and as the gallery holds them.

    ``fresh`` [n, d] by the new model, ``parent`` [n, d] by the one before it; ``labels`` [n] of the class; ``tasks``
    [n] the task that brought the class first; ``mapped`` [n, d] stored vectors in the parent's space; ``raw`` [n, d]
    as they were stored; ``names`` the class of each label.
    """

    fresh: Floats
    parent: Floats
    labels: NDArray[np.int64]
    tasks: NDArray[np.str_]
    of_this_task: NDArray[np.bool_]
    mapped: Floats
    raw: Floats
    names: Sequence[str]


def shared_held_out(
    store: Store,
    order: StageOrder,
    config: StreamConfig,
    student: Embedder,
    world: World,
    all_ranks: Callable[[Any], list[Any]],
) -> HeldOut | None:
    """What to measure a finished stage on; every rank calls this, embeds its part, and all but the first get None.

    ``all_ranks`` gives the value of each rank to every rank. None also where there are too few images.
    """
    # Rank 0's choice for all: another may read the store a commit earlier.
    rows = choose(store, order.parent, order.task, config.evaluation, config.seed) if not world.rank else None
    keys = all_ranks(None if rows is None else keys_of(rows))[0]
    parent = embedder_from_bytes(store.artifact(order.parent, STUDENT))
    mine = keys[share(len(keys), world.rank, world.size)]
    size, max_pixels = config.model.image_size, config.ingest.max_pixels
    parts = all_ranks(embed_images(store, mine, (student, parent), size, max_pixels, world.device))
    if rows is None:
        return None
    there = np.concatenate([part[0] for part in parts])
    fresh, before = (np.concatenate([part[1][i] for part in parts]) for i in range(2))
    return assemble(store, order.parent, order.task, rows, there, fresh, before)


def choose(store: Store, parent: str, task: str, evaluation: EvaluationConfig, seed: int) -> pa.Table:
    """Gallery rows of the held-out images to measure a stage of ``task`` on, shard by shard: at most
    ``evaluation.max_per_class`` of a class and ``max_images`` in all, beyond which classes are drawn by ``seed``."""
    tasks = {*store.tree.learnt(parent), task}
    shards = [s.shard_id for s in store.ledger.shards.values() if s.task in tasks and s.held_out]
    classes = _drawn_classes(store, tasks, task, evaluation, seed)
    rows = store.again(
        lambda: rows_of_classes(
            store, parent, shards, pc.field("held_out"), evaluation.max_per_class, seed, classes
        )
    )
    return rows.sort_by([("shard_id", "ascending"), ("item_id", "ascending")])


def _drawn_classes(
    store: Store, tasks: set[str], task: str, evaluation: EvaluationConfig, seed: int
) -> set[str] | None:
    """The classes to measure, or None for all: half of the images for the task's own, the rest for older ones."""
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for name in tasks:
        for shard_id in store.ledger.tasks[name].shard_ids:
            shard = store.ledger.shards[shard_id]
            trainable = shard.counts.get("trainable", {})
            counts[name == task].update({c: n - trainable.get(c, 0) for c, n in shard.classes.items()})
    expected = {own: _expected(counts[own], evaluation.max_per_class) for own in counts}
    if sum(sum(part.values()) for part in expected.values()) <= evaluation.max_images:
        return None
    quota = evaluation.max_images // 2
    room = {own: max(quota, evaluation.max_images - sum(expected[not own].values())) for own in expected}
    return {name for own, part in expected.items() for name in _fitting(part, room[own], seed)}


def _expected(counts: Counter[str], per_class: int) -> dict[str, int]:
    return {name: min(count, per_class) for name, count in counts.items() if count > 0}


def _fitting(counts: dict[str, int], room: int, seed: int) -> Iterator[str]:
    for name in drawn(counts, seed):
        room -= counts[name]
        if room < 0:
            return
        yield name


def keys_of(rows: pa.Table) -> list[tuple[str, str]]:
    """(shard, item) of each row: all that another rank needs to read its image."""
    return list(zip(rows["shard_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True))


def share(rows: int, rank: int, ranks: int) -> slice:
    """Return this rank's part of so many rows: parts follow one another, so that few shards are read twice."""
    return slice(rows * rank // ranks, rows * (rank + 1) // ranks)


def embed_images(
    store: Store,
    keys: Sequence[tuple[str, str]],
    models: Sequence[Embedder],
    size: int,
    max_pixels: int,
    device: str | torch.device,
) -> tuple[NDArray[np.bool_], list[Floats]]:
    """Which of the (shard, item) keys have an image that can be read, and those embedded by each model on ``device``.

    One that was forgotten while this was read, or that does not decode, is left out.
    """
    there = np.zeros(len(keys), bool)
    vectors: list[list[Floats]] = [[] for _ in models]
    for at, pixels in _batches(_pixels(store, keys, size, max_pixels)):
        there[at] = True
        for found, model in zip(vectors, models, strict=True):
            found.append(embed(model, pixels, device))
    empty = [np.empty((0, model.spec.dim), np.float32) for model in models]
    return there, [np.concatenate([e, *parts]) for e, parts in zip(empty, vectors, strict=True)]


def _pixels(
    store: Store, keys: Sequence[tuple[str, str]], size: int, max_pixels: int
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    start = 0
    while start < len(keys):
        shard = keys[start][0]
        end = next((i for i in range(start, len(keys)) if keys[i][0] != shard), len(keys))
        images = _images(store, shard, [item for _, item in keys[start:end]])
        for i in range(start, end):
            image = images.get(keys[i][1])
            if image is not None:
                try:
                    yield i, decode_image(image, size, max_pixels)
                except (
                    BadImage
                ):  # it was read when it was indexed; what counts is that nothing else is lost with it
                    continue
        start = end


def _images(store: Store, shard: str, items: Sequence[str]) -> dict[str, bytes]:
    path = f"holdout/{shard}.parquet"
    if not store.files.exists(path):
        return {}
    table = pq.read_table(io.BytesIO(store.files.read(path)), columns=["item_id", "image"])
    table = table.filter(pc.is_in(table["item_id"].cast(pa.string()), value_set=pa.array(items, pa.string())))
    return dict(zip(table["item_id"].to_pylist(), table["image"].to_pylist(), strict=True))


def _batches(
    pixels: Iterator[tuple[int, NDArray[np.uint8]]],
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    at: list[int] = []
    batch: list[NDArray[np.uint8]] = []
    for i, image in pixels:
        at.append(i)
        batch.append(image)
        if len(batch) == BATCH:
            yield at, np.stack(batch)
            at, batch = [], []
    if batch:
        yield at, np.stack(batch)


def assemble(
    store: Store,
    parent: str,
    task: str,
    rows: pa.Table,
    there: NDArray[np.bool_],
    fresh: Floats,
    by_parent: Floats,
) -> HeldOut | None:
    """The rows whose image was read, with what the gallery holds of them; None if there are too few to measure."""
    rows = rows.filter(pa.array(there))
    if len(rows) < 2:
        return None
    names = rows["class_name"].to_pylist()
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    first = _first_tasks(store, number)
    raw = vectors_of(rows["vector"], store.dim)
    return HeldOut(
        fresh,
        by_parent,
        np.array([number[name] for name in names], np.int64),
        np.array([first[name] for name in names]),
        np.array([store.ledger.shards[s].task == task for s in rows["shard_id"].to_pylist()]),
        mapped_to(store, raw, rows["version"].to_pylist(), parent),
        raw,
        list(number),
    )


def _first_tasks(store: Store, wanted: dict[str, int]) -> dict[str, str]:
    first: dict[str, str] = {}
    for task in store.ledger.tasks.values():
        for shard in task.shard_ids:
            for name in store.ledger.shards[shard].classes:
                if name in wanted:
                    first.setdefault(name, task.task_id)
    return first


def mapped_to(store: Store, raw: Floats, versions: Sequence[str], parent: str) -> Floats:
    """Stored vectors [n, d] in the space of `parent`, each from that of the version that made it."""
    mapped, (names, codes) = raw.copy(), np.unique(np.array(versions, str), return_inverse=True)
    made_by = [str(name) for name in names]
    map_in_place(store.mapper.into(store.tree, made_by, parent), made_by, codes, mapped)
    return mapped
