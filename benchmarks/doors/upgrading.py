"""An upgrade, measured: what was expected beside what is served, the map beside embedding every image again, and what
a fifth of the images closes of the rest.

    STREAM_ODML_DATA=... python -m benchmarks.doors --parts upgrade-size --seeds 0 1 2 3 4
    STREAM_ODML_DATA=... python -m benchmarks.doors --parts upgrade-order --seeds 0 1 2 3 4 5 6 7 8 9 15 16 17 ... 29

Features are of real images (Flowers and Grocery in one gallery) by real networks. Half of the images are at hand when
the upgrade is prepared; in `upgrade-blind` none of a third of the classes. `upgrade-order` is `upgrade-size` over many
seeds: what a fifth closes of a gap of 0.02 differs by 0.2 from one seed to the next, so that five do not tell it. The
order was chosen by seeds 10 to 14.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.common import Report
from benchmarks.doors.made import land_and_learn_all, vector_stream
from stream_odml.config.service import DEFAULT_MAX_PIXELS
from stream_odml.exchange.adopting import adopt
from stream_odml.exchange.pairs import Pairs
from stream_odml.exchange.stored_items import StoredItems
from stream_odml.exchange.upgrading import MAP, MappedRoot, planned
from stream_odml.ingest.decode import decode_image
from stream_odml.learn.cross_map import CrossMap
from stream_odml.learn.embedder import build_embedder, embed
from stream_odml.learn.settings import EmbedderSpec
from stream_odml.pipeline.first_version import open_root
from stream_odml.search.search import SearchSettings
from stream_odml.search.snapshot import GallerySnapshot
from stream_odml.store.store import Store

Floats = NDArray[np.float32]
Rows = NDArray[np.int64]
SETS = ("flowers102", "grocery81")
WEIGHTS = "mobilenetv2_100_coral_ptq.safetensors"
NETWORKS = ("conv4-64", "mobilenetv2-64", "mobilenetv2-96")
_LARGER = ("mobilenetv2-64", "mobilenetv2-96", 0.0)
CHANGES = {
    "size": _LARGER,
    "order": _LARGER,
    "blind": ("mobilenetv2-64", "mobilenetv2-96", 1 / 3),
    "backbone": ("conv4-64", "mobilenetv2-96", 0.0),
}
"""Old network, new one, share of the classes of which no image is at hand."""
IN_GALLERY, AT_HAND = 0.6, 0.5
TASKS, SHARDS = 10, 4
PER_CLASS = 100


def measure_upgrade(change: str, report: Report, folder: Path, seed: int) -> None:
    """Upgrade a gallery of features of real images; after the last seed note the worst of all, and the mean share that
    a backfill closes."""
    data = os.environ.get("STREAM_ODML_DATA")
    if not data:
        report.say("upgrade: left out, as STREAM_ODML_DATA names no folder")
        return
    found = _as_of_size(report, seed) if change == "order" else None
    if found is None:
        old, new, blind = CHANGES[change]
        classes, features = _features(report, Path(data))
        found = Trial(folder, classes, features[old], features[new], seed, blind).measure()
    report.row(part=f"upgrade-{change}", seed=seed, **found)
    report.say(f"{change}: " + ", ".join(f"{name} {value:.3f}" for name, value in found.items()))
    rows = [row for row in report.rows if row["part"] == f"upgrade-{change}"]
    if len(rows) == len(report.seeds):
        prefix = f"{change}_"
        if change != "order":
            _sum_up_recalls(report, rows, "" if change == "size" else prefix)
        _sum_up_orders(report, rows, "" if change == "order" else prefix)


def _as_of_size(report: Report, seed: int) -> dict[str, float] | None:
    """Return what `upgrade-size` found of a seed in this run: `upgrade-order` is the same trial."""
    rows = [row for row in report.rows if row["part"] == "upgrade-size" and row["seed"] == seed]
    return {name: value for name, value in rows[0].items() if name not in ("part", "seed")} if rows else None


def _sum_up_recalls(report: Report, rows: list[dict[str, Any]], name: str) -> None:
    errors = [abs(row["expected"] - row["mapped"]) for row in rows]
    report.figure(f"{name}upgrade_expectation_error", max(errors))
    report.figure(f"{name}upgrade_expectation_error_mean", float(np.mean(errors)))
    report.figure(f"{name}upgrade_recall_over_staying", min(row["mapped"] / row["staying"] for row in rows))
    report.figure(
        f"{name}upgrade_recall_over_reembedding", min(row["mapped"] / row["reembedded"] for row in rows)
    )


def _sum_up_orders(report: Report, rows: list[dict[str, Any]], name: str) -> None:
    for order, end in (("worst", ""), ("random", "_random")):
        closed = [
            (row[f"backfilled_{order}"] - row["mapped"]) / (row["reembedded"] - row["mapped"]) for row in rows
        ]
        report.figure(f"{name}backfill_20_percent_closes{end}", float(np.mean(closed)))


class Trial:
    """One gallery under two models: tasks of some classes each, which land in shards of some of their images."""

    def __init__(
        self, folder: Path, classes: NDArray[np.str_], old: Floats, new: Floats, seed: int, blind: float
    ) -> None:
        random = np.random.default_rng(seed)
        names = random.permutation(np.unique(classes))
        stored = np.zeros(len(classes), bool)
        for name in names:
            rows = random.permutation(np.flatnonzero(classes == name))
            stored[rows[: round(IN_GALLERY * len(rows))]] = True
        self.folder, self.random = folder, random
        self.classes, self.old, self.new = classes, old, new
        self.items, self.queries = np.flatnonzero(stored), np.flatnonzero(~stored)
        unseen = names[: round(blind * len(names))]
        at_hand = random.random(len(self.items)) < AT_HAND
        self.paired = self.items[at_hand & ~np.isin(classes[self.items], unseen)]
        tasks = (self.items[np.isin(classes[self.items], part)] for part in np.array_split(names, TASKS))
        self.shards = [part for rows in tasks for part in np.array_split(random.permutation(rows), SHARDS)]
        self.ids: dict[int, str] = {}

    def measure(self) -> dict[str, float]:
        """Recalls@1, expected and measured."""
        old_root = vector_stream(self.folder / "old", self.old.shape[1])
        open_root(old_root)
        land_and_learn_all(
            old_root,
            {f"shard-{n}": (self.classes[r].tolist(), self.old[r]) for n, r in enumerate(self.shards)},
        )
        for number, rows in enumerate(self.shards):
            self.ids |= {int(row): f"shard-{number}/{at}" for at, row in enumerate(rows)}
        config = vector_stream(self.folder / "new", self.new.shape[1])
        stored = StoredItems(Store.open(old_root.root))
        upgrade = planned(stored, self._pairs(self.paired), config, 0.0)
        upgrade.adopt()
        cross = CrossMap.from_bytes((self.folder / "new" / MAP).read_bytes())
        found = {
            "pairs": len(self.paired),
            "items": len(self.items),
            "staying": self._recall(old_root.root, self.old),
            "expected_staying": upgrade.expected.staying,
            "expected": upgrade.expected.mapped,
            "mapped": self._recall(config.root, self.new),
            "within": upgrade.within,
            "expected_reembedded": upgrade.expected.reembedded,
        }
        more = {"reembedded": self.items, **self._backfilled(config.root)}
        for name, rows in more.items():
            other = vector_stream(self.folder / name, self.new.shape[1])
            exact = np.union1d(self.paired, rows)
            # Those of a head stay while items are embedded in the background; all items of a new root choose them.
            settings = None if name == "reembedded" else upgrade.settings
            adopt(MappedRoot(stored, cross, self._pairs(exact)), other, settings=settings)
            found[name] = self._recall(other.root, self.new)
        return found

    def _pairs(self, rows: Rows) -> Pairs:
        ids = tuple(self.ids[int(row)] for row in rows)
        return Pairs(self.old[rows], self.new[rows], tuple(self.classes[rows].tolist()), ids)

    def _backfilled(self, root: str) -> dict[str, Rows]:
        """Items that are embedded again of a fifth of those that are mapped: those that the new root embeds before all
        others, and as many at random."""
        mapped, known = np.setdiff1d(self.items, self.paired), Store.open(root).ledger.shards
        parts = [rows[known[f"shard-{n}"].worst_rows] for n, rows in enumerate(self.shards)]
        worst = np.concatenate(parts)
        at_random = self.random.choice(mapped, len(worst), False)
        return {"backfilled_worst": worst, "backfilled_random": at_random}

    def _recall(self, root: str, features: Floats) -> float:
        snapshot = GallerySnapshot.load(Store.open(root), SearchSettings("exact"))
        queries = snapshot.space.embeddings(features[self.queries])
        found = snapshot.search(queries, snapshot.version, k=1)
        names = [hits[0].class_name for hits in found]
        return float(np.mean(np.array(names) == self.classes[self.queries]))


def _features(report: Report, data: Path) -> tuple[NDArray[np.str_], dict[str, Floats]]:
    """Classes of all images, and features by network; every seed asks for them, so a folder here keeps them."""
    torch.set_num_threads(os.cpu_count() or 1)
    kept = Path(tempfile.gettempdir()) / f"stream-odml-features-{'-'.join(SETS)}.npz"
    if not kept.exists():
        rows = pa.concat_tables([_some_of_each(data / f"{name}.parquet") for name in SETS])
        features: dict[str, Any] = {}
        for name in NETWORKS:
            features[name] = _embedded(name, rows["image"], data)
            report.say(f"{len(rows)} images embedded by {name}")
        aside = kept.with_suffix(f".{os.getpid()}.npz")
        np.savez(aside, classes=np.array(rows["class_name"].to_pylist(), np.str_), **features)
        aside.replace(kept)
    with np.load(kept) as file:
        found = {name: file[name][:: 8 if report.quick else 1] for name in file.files}
    return found.pop("classes"), found


def _some_of_each(path: Path) -> pa.Table:
    """Rows of at most `PER_CLASS` images of each class."""
    rows, random = pq.read_table(path, columns=["image", "class_name"]), np.random.default_rng(0)
    names = np.array(rows["class_name"].to_pylist(), np.str_)
    some = [random.permutation(np.flatnonzero(names == name))[:PER_CLASS] for name in np.unique(names)]
    return rows.take(pa.array(np.concatenate(some)))


def _embedded(name: str, images: pa.ChunkedArray, data: Path) -> Floats:
    backbone, _, side = name.partition("-")
    weights = str(data / WEIGHTS) if backbone == "mobilenetv2" else None
    spec = EmbedderSpec(backbone, image_size=int(side), head="discriminant", weights=weights)
    model = build_embedder(spec, 0).eval()
    parts = []
    for at in range(0, len(images), 64):
        some = [image.as_py() for image in images[at : at + 64]]
        pixels = [decode_image(image, spec.image_size, DEFAULT_MAX_PIXELS) for image in some]
        parts.append(embed(model, np.stack(pixels)))
    return np.concatenate(parts)
