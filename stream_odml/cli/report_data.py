"""What a report shows, read from a stream root: figures by version, quarantine, and example queries with neighbours."""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from stream_odml.cli.versions_table import diff_of, stage_rows
from stream_odml.config.masking import masked_text
from stream_odml.config.service import LARGEST_MAX_PIXELS
from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.kept_images import read_images
from stream_odml.ingest.reasons import BadImage
from stream_odml.learn.embedder import embed, embedder_from_bytes
from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.artifacts import STUDENT
from stream_odml.store.store import Store
from stream_odml.store.unlearnt import Unlearnt, unlearnt_tasks
from stream_odml.store.version_metrics import VersionMetrics

SHARDS_READ = 64
"""Held-out files that examples are drawn from, newest and oldest shards alike."""
SIDE = 72
"""Pixels of a picture in the report."""


@dataclass(frozen=True)
class Neighbour:
    """One item found for an example; `picture` JPEG bytes, or None where none was kept."""

    class_name: str
    score: float
    right: bool
    picture: bytes | None


@dataclass(frozen=True)
class Example:
    """A held-out image as a query, and the nearest items other than itself."""

    item_id: str
    class_name: str
    picture: bytes
    neighbours: Sequence[Neighbour]

    @property
    def right(self) -> bool:
        """Return whether the nearest neighbour is of the query's class."""
        return bool(self.neighbours) and self.neighbours[0].right


@dataclass(frozen=True)
class ReportData:
    """Everything the page shows."""

    root: str
    head: str
    versions: Sequence[dict[str, Any]]
    """Rows of `versions_table.stage_rows`, with the measures of drift."""
    items: int
    classes: int
    quarantine: dict[str, int]
    examples: Sequence[Example]
    not_learnt: Sequence[Unlearnt]
    """Tasks that were refused or skipped."""
    lost_classes: Sequence[tuple[str, float, float]]
    """Class, Recall@1 at the version before, and now: the strongest losses of the head's stage."""


def report_data(root: str, queries: int, neighbours: int, seed: int) -> ReportData:
    """Read a stream root. Raises ValueError where there is no stream, NoVersionYet before its first model."""
    store = Store.open(root)
    snapshot = GallerySnapshot.load(store, SearchSettings("exact"))
    versions = stage_rows(store)
    for row in versions:
        row |= VersionMetrics.read(store.tree.get(row["version"]).metrics).drift
    reasons = Counter(store.quarantine_rows()["reason"].to_pylist())
    return ReportData(
        root,
        snapshot.version,
        versions,
        len(snapshot),
        len({int(code) for code in snapshot.columns.array("class_name")[snapshot.rows()]}),
        dict(reasons.most_common()),
        _examples(store, snapshot, queries, neighbours, seed),
        unlearnt_tasks(store.ledger, store.tree, root=masked_text(store.uri)),
        _lost(store, snapshot.version),
    )


def _examples(
    store: Store, snapshot: GallerySnapshot, queries: int, neighbours: int, seed: int
) -> list[Example]:
    """Search the served gallery for held-out images, embedded by the served model, without themselves."""
    held = _held_out(store, snapshot, seed)
    rng = np.random.default_rng(seed)
    drawn = [held[i] for i in rng.permutation(len(held))[:queries]]
    if not drawn:
        return []
    model = embedder_from_bytes(store.artifact(snapshot.version, STUDENT))
    chosen, pixels = [], []
    for example in drawn:
        # The report knows no configuration: what is held out was admitted under the limit of its own stream.
        with contextlib.suppress(BadImage):
            pixels.append(decode_image(example[2], model.spec.image_size, LARGEST_MAX_PIXELS))
            chosen.append(example)
    if not chosen:
        return []
    vectors = snapshot.space.embeddings(embed(model, np.stack(pixels)))
    found = snapshot.search(vectors, snapshot.version, neighbours + 1)

    @cache
    def pictures(shard_id: str) -> dict[str, bytes]:
        """Return kept thumbnails of a shard's items, else held-out images; each file is read once."""
        held, kept = (
            read_images(store.files, f"{folder}/{shard_id}.parquet") for folder in ("holdout", "thumbnails")
        )
        return {**held, **kept}

    examples = []
    for (item_id, class_name, image), hits in zip(chosen, found, strict=True):
        others = [hit for hit in hits if hit.item_id != item_id][:neighbours]
        near = [
            Neighbour(
                h.class_name,
                h.score,
                h.class_name == class_name,
                _picture(pictures(h.shard_id).get(h.item_id)),
            )
            for h in others
        ]
        examples.append(Example(item_id, class_name, small_picture(image), near))
    return sorted(examples, key=lambda example: example.right)


def _held_out(store: Store, snapshot: GallerySnapshot, seed: int) -> list[tuple[str, str, bytes]]:
    """Return (item, class, image) of living held-out items, of at most SHARDS_READ shards that have any."""
    columns, rows = snapshot.columns, snapshot.rows()
    rows = rows[columns.array("held_out")[rows]]
    shards_n = columns.array("shard_id")[rows]
    shards = np.unique(shards_n)
    drawn = np.sort(np.random.default_rng(seed).permutation(shards)[:SHARDS_READ])
    found = []
    for shard in drawn:
        path = f"holdout/{columns.names['shard_id'].names[shard]}.parquet"
        living = rows[shards_n == shard]
        classes = {
            item: columns.name("class_name", int(row))
            for item, row in zip(columns.item_ids.take(living), living, strict=True)
        }
        images = read_images(store.files, path)
        found += [(item, classes[item], image) for item, image in images.items() if item in classes]
    return found


def service_latency(text: str) -> dict[str, float]:
    """Return median and p99 in ms of each kind of request, by a replica's exposition: upper bounds of buckets."""
    buckets: dict[str, list[tuple[float, float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples if family.name == "stream_odml_query_seconds" else ():
            if sample.name.endswith("_bucket"):
                at_most = (float(sample.labels["le"]), float(sample.value))
                buckets.setdefault(sample.labels["kind"], []).append(at_most)
    found = {}
    for kind, counts in buckets.items():
        for share in (50, 99):
            bound = next((b for b, n in counts if n >= counts[-1][1] * share / 100), None)
            if counts[-1][1] and bound is not None and bound != float("inf"):
                found[f"{kind}, p{share} at most"] = 1e3 * bound
    return found


def _picture(image: bytes | None) -> bytes | None:
    with contextlib.suppress(BadImage):
        return None if image is None else small_picture(image)
    return None


def small_picture(image: bytes) -> bytes:
    """Return a JPEG of at most SIDE pixels a side. Raises BadImage for what cannot be decoded."""
    decode_image(image, SIDE, LARGEST_MAX_PIXELS)
    with Image.open(io.BytesIO(image)) as opened:
        small = opened.convert("RGB")
    small.thumbnail((SIDE, SIDE))
    out = io.BytesIO()
    small.save(out, "JPEG", quality=80)
    return out.getvalue()


def _lost(store: Store, head: str) -> list[tuple[str, float, float]]:
    """Return classes whose recall fell most in the head's stage."""
    now = store.tree.get(head)
    if now.parent is None:
        return []
    return [(row["class"], row["from"], row["to"]) for row in diff_of(store, now.parent, head)["lost"][:10]]
