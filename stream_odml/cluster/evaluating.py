"""Recall of a stage on held-out images before it is published: as served, as re-extracted, and unmapped.

Protects: held-out images are read here and nowhere else in a stage, and nothing here changes the model.
The gallery is the union of all held-out images so far; a query is one of them, and never finds itself.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.cluster.figures import recall_key
from stream_odml.gallery.applying import map_in_place
from stream_odml.gallery.select import select_rows
from stream_odml.gallery.store import META, Store, compact
from stream_odml.gallery.tables import GALLERY, vectors_of
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.embedder import Embedder, embed
from stream_odml.learn.evaluation import Retrieval, nearest_is_relevant
from stream_odml.stream.decode import decode_image
from stream_odml.stream.reasons import BadImage

Floats = NDArray[np.float32]
TASK_KEY = "recall_at_1_of_task/"
CLASS_KEY = "recall_by_class"


@dataclass(frozen=True)
class HeldOut:
    """Held-out images of learnt tasks and of the one at hand, with what the gallery holds of them.

    ``pixels`` uint8 [n, H, W, 3]; ``labels`` [n] of the class; ``tasks`` [n] the task that brought the class
    first; ``mapped`` [n, d] stored vectors in the parent's space; ``raw`` [n, d] as they were stored; ``names`` the
    class of each label.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    tasks: NDArray[np.str_]
    of_this_task: NDArray[np.bool_]
    mapped: Floats
    raw: Floats
    names: Sequence[str]


def load_held_out(
    store: Store, parent: str, task: str, size: int, per_class: int, max_pixels: int
) -> HeldOut | None:
    """All held-out images to measure a stage of ``task`` on, at most ``per_class`` of a class; None if too few.

    An image that cannot be decoded any more is left out.
    """
    rows = store.again(lambda: _rows(store, parent, {*store.tree.learnt(parent), task}, per_class))
    images = [_decoded(image, size, max_pixels) for image in _images(store, rows)]
    rows = rows.filter(pa.array([image is not None for image in images], pa.bool_()))
    if len(rows) < 2:
        return None
    first = _first_tasks(store)
    names = rows["class_name"].to_pylist()
    number = {name: i for i, name in enumerate(dict.fromkeys(names))}
    raw = vectors_of(rows["vector"], store.dim)
    return HeldOut(
        np.stack([image for image in images if image is not None]),
        np.array([number[name] for name in names], np.int64),
        np.array([first[name] for name in names]),
        np.array([store.ledger.shards[s].task == task for s in rows["shard_id"].to_pylist()]),
        mapped_to(store, raw, rows["version"].to_pylist(), parent),
        raw,
        list(number),
    )


def _decoded(image: bytes | None, size: int, max_pixels: int) -> NDArray[np.uint8] | None:
    try:
        return None if image is None else decode_image(image, size, max_pixels)
    except BadImage:
        return None


def evaluate_stage(held: HeldOut, student: Embedder, forward: DriftMap, task: str) -> dict[str, Any]:
    """Recall@1 of the new version: by split and gallery form, re-extracted of each task's classes, and served of each
    class (a dict under :data:`CLASS_KEY`)."""
    fresh = embed(student, held.pixels)
    # At the commit the task's own items are embedded anew; all others are only ever mapped.
    served = np.where(held.of_this_task[:, None], fresh, forward.apply(held.mapped).astype(np.float32))
    stale = np.where(held.of_this_task[:, None], fresh, held.raw)
    forms = {"served": served, "reextracted": fresh, "stale": stale}
    found = {form: _nearest(held, fresh, gallery) for form, gallery in forms.items()}
    new = held.tasks == task
    splits = {"old": ~new, "new": new, "union": np.ones(len(new), bool)}
    figures: dict[str, Any] = {
        recall_key(split, form): value
        for split, queries in splits.items()
        for form in forms
        if (value := _mean(found[form][queries])) is not None
    }
    for name in np.unique(held.tasks):
        value = _mean(found["reextracted"][held.tasks == name])
        if value is not None:
            figures[f"{TASK_KEY}{name}"] = value
    figures[CLASS_KEY] = {
        held.names[label]: round(value, 4)
        for label in np.unique(held.labels)
        if (value := _mean(found["served"][held.labels == label])) is not None
    }
    return figures


def evaluate_parent(held: HeldOut, parent: Embedder, task: str) -> dict[str, float]:
    """Served Recall@1 of the version that the stage would replace, on the same images."""
    found = _nearest(held, embed(parent, held.pixels), held.mapped)
    new = held.tasks == task
    values = {"old": _mean(found[~new]), "new": _mean(found[new])}
    return {f"parent_recall_at_1/{split}": value for split, value in values.items() if value is not None}


def forgetting(store: Store, parent: str, figures: Mapping[str, Any]) -> float | None:
    """Mean over earlier tasks of the best Recall@1 so far minus the one now; None before the second task."""
    lineage = [store.tree.get(version).metrics for version in store.tree.lineage(parent)]
    losses = []
    for key, now in figures.items():
        if not key.startswith(TASK_KEY):
            continue
        best = max((float(m[key]) for m in lineage if key in m), default=None)
        if best is not None:
            losses.append(best - now)
    return float(np.mean(losses)) if losses else None


def _nearest(held: HeldOut, queries: Floats, gallery: Floats) -> Floats:
    return nearest_is_relevant(Retrieval(queries, held.labels, gallery, held.labels, np.arange(len(queries))))


def _mean(found: Floats) -> float | None:
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else None  # None: no class with a second image, nothing to find


def _rows(store: Store, parent: str, tasks: set[str], per_class: int) -> pa.Table:
    shards = [s.shard_id for s in store.ledger.shards.values() if s.task in tasks and s.held_out]
    # An item is held out by its id, so all rows that an item's row competes with are among these.
    return rows_of_classes(store, parent, shards, pc.field("held_out"), per_class)


def rows_of_classes(
    store: Store, parent: str, shards: Sequence[str], where: pc.Expression, per_class: int
) -> pa.Table:
    """Gallery rows that pass `where`, as a reader of version `parent` sees them: of these shards, so many a class."""
    blocks = {path: compact(part) for path, part in store.scan(META, where)} if shards else {}
    if not blocks:
        return GALLERY.empty_table()
    meta = pa.concat_tables(list(blocks.values())).unify_dictionaries()
    keep = np.zeros(len(meta), bool)
    keep[select_rows(meta, store.ledger, store.tree, parent).picked] = True
    keep &= pc.is_in(meta["shard_id"], pa.array(shards, pa.string())).to_numpy(zero_copy_only=False)
    keep &= _first_of_each(meta["class_name"].to_pylist(), keep, per_class)
    parts, start = [], 0
    for path, block in blocks.items():
        mine = keep[start : start + len(block)]
        start += len(block)
        if mine.any():
            parts.append(store.tables["gallery"].read(path, None, where).filter(pa.array(mine)))
    return pa.concat_tables(parts) if parts else GALLERY.empty_table()


def _first_of_each(names: Sequence[str], keep: NDArray[np.bool_], most: int) -> NDArray[np.bool_]:
    count: dict[str, int] = {}
    chosen = np.zeros(len(keep), bool)
    for i in np.flatnonzero(keep).tolist():
        count[names[i]] = count.get(names[i], 0) + 1
        chosen[i] = count[names[i]] <= most
    return chosen


def _images(store: Store, rows: pa.Table) -> list[bytes | None]:
    """The image of each row; None where it was forgotten while this was read."""
    shards, items = rows["shard_id"].to_pylist(), rows["item_id"].to_pylist()
    wanted = set(zip(shards, items, strict=True))
    images: dict[tuple[str, str], bytes] = {}
    for shard in dict.fromkeys(shards):
        if not store.files.exists(f"holdout/{shard}.parquet"):
            continue
        table = pq.read_table(io.BytesIO(store.files.read(f"holdout/{shard}.parquet")))
        ids, data = table["item_id"].to_pylist(), table["image"].to_pylist()
        pairs = zip(ids, data, strict=True)
        images.update({(shard, item): image for item, image in pairs if (shard, item) in wanted})
    return [images.get(key) for key in zip(shards, items, strict=True)]


def _first_tasks(store: Store) -> dict[str, str]:
    first: dict[str, str] = {}
    for task in store.ledger.tasks.values():
        for shard in task.shard_ids:
            for name in store.ledger.shards[shard].classes:
                first.setdefault(name, task.task_id)
    return first


def mapped_to(store: Store, raw: Floats, versions: Sequence[str], parent: str) -> Floats:
    """Stored vectors [n, d] in the space of `parent`, each from that of the version that made it."""
    mapped, (names, codes) = raw.copy(), np.unique(np.array(versions, str), return_inverse=True)
    made_by = [str(name) for name in names]
    map_in_place(store.mapper.into(store.tree, made_by, parent), made_by, codes, mapped)
    return mapped
