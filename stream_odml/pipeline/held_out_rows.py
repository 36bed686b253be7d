"""The rows of held-out images that a stage is measured on, and what the gallery holds of them. Loads no torch.

Protects: the number of rows does not grow with the stream; a row counts only if a reader would see it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from stream_odml.config.stream import EvaluationConfig
from stream_odml.pipeline.sampling import drawn, rows_of_classes
from stream_odml.search.applying import map_in_place
from stream_odml.store.store import Store
from stream_odml.store.tables import decoded

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class HeldOut:
    """Held-out images of learnt tasks and of the one at hand, as both models embed them and as the gallery holds them.

    `fresh` [n, d] by the new model, `parent` [n, d] by the one before it; `classes` [n]; `tasks` [n] the task that
    brought the class first; `anew` [n] whether the stage embeds the item anew; `mapped` [n, d] stored vectors in the
    parent's space; `raw` [n, d] as they were stored.
    """

    fresh: Floats
    parent: Floats
    classes: Sequence[str]
    tasks: NDArray[np.str_]
    anew: NDArray[np.bool_]
    mapped: Floats
    raw: Floats


def choose(
    store: Store, parent: str, own: Collection[str], evaluation: EvaluationConfig, seed: int
) -> pa.Table:
    """Return gallery rows of the held-out images to measure a stage of task(s) `own` on, shard by shard: at most
    `evaluation.max_per_class` of a class and `max_images` in all, beyond which classes are drawn by `seed`."""
    tasks = store.tree.learnt(parent).union(own)
    shards = [s.shard_id for s in store.ledger.shards.values() if s.task in tasks and s.held_out]
    classes = _drawn_classes(store, tasks, own, evaluation, seed)
    rows = store.again(
        lambda: rows_of_classes(
            store, parent, shards, pc.field("held_out"), evaluation.max_per_class, seed, classes
        )
    )
    return rows.sort_by([("shard_id", "ascending"), ("item_id", "ascending")])


def _drawn_classes(
    store: Store, tasks: Collection[str], own: Collection[str], evaluation: EvaluationConfig, seed: int
) -> set[str] | None:
    """Return the classes to measure, or None for all: half of the images for the stage's own, the rest for older ones.
    A class that was forgotten takes up none of them."""
    counts: dict[bool, Counter[str]] = {True: Counter(), False: Counter()}
    for name in tasks:
        for shard_id in store.ledger.tasks[name].shard_ids:
            shard = store.ledger.shards[shard_id]
            trainable = shard.counts.get("trainable", {})
            living = store.ledger.living_classes(shard_id)
            counts[name in own].update({c: n - trainable.get(c, 0) for c, n in living.items()})
    most = evaluation.max_per_class
    expected = {new: {c: min(n, most) for c, n in part.items() if n > 0} for new, part in counts.items()}
    if sum(sum(part.values()) for part in expected.values()) <= evaluation.max_images:
        return None
    quota = evaluation.max_images // 2
    room = {new: max(quota, evaluation.max_images - sum(expected[not new].values())) for new in expected}
    return {name for new, part in expected.items() for name in _fitting(part, room[new], seed)}


def _fitting(counts: dict[str, int], room: int, seed: int) -> Iterator[str]:
    for name in drawn(counts, seed):
        room -= counts[name]
        if room < 0:
            return
        yield name


def keys_of(rows: pa.Table) -> list[tuple[str, str]]:
    """Return (shard, item) of each row: all that another rank needs to read its image."""
    return list(zip(rows["shard_id"].to_pylist(), rows["item_id"].to_pylist(), strict=True))


def share(rows: int, rank: int, ranks: int) -> slice:
    """Return this rank's part of so many rows: parts follow one another, so that few shards are read twice."""
    return slice(rows * rank // ranks, rows * (rank + 1) // ranks)


def assemble(
    store: Store,
    parent: str,
    shards: Sequence[str],
    rows: pa.Table,
    there: NDArray[np.bool_],
    fresh: Floats | None = None,
    by_parent: Floats | None = None,
) -> HeldOut | None:
    """Return the rows whose image was read, with what the gallery holds of them; None if there are too few to measure.
    `shards`: those of the stage. Without embeddings of the images, what the gallery holds stands for them: under one
    trunk it is the same."""
    rows = rows.filter(pa.array(there))
    if len(rows) < 2:
        return None
    classes = rows["class_name"].to_pylist()
    first = _first_tasks(store, set(classes))
    raw = decoded(rows, store.dim)
    mapped = mapped_to(store, raw, rows["version"], parent)
    return HeldOut(
        mapped if fresh is None else fresh,
        mapped if by_parent is None else by_parent,
        classes,
        np.array([first[name] for name in classes]),
        np.isin(rows["shard_id"].to_pylist(), shards),
        mapped,
        raw,
    )


def _first_tasks(store: Store, wanted: Collection[str]) -> dict[str, str]:
    first: dict[str, str] = {}
    for task in store.ledger.tasks.values():
        for shard in task.shard_ids:
            for name in store.ledger.shards[shard].classes:
                if name in wanted:
                    first.setdefault(name, task.task_id)
    return first


def mapped_to(store: Store, raw: Floats, versions: pa.ChunkedArray, parent: str) -> Floats:
    """Return stored vectors [n, d] in the space of `parent`, each from that of the version that made it."""
    mapped = raw.copy()
    map_in_place(store.mapper, store.tree, versions, parent, mapped)
    return mapped
