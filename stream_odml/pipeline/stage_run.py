"""One stage on one rank: open the task's pixels, step, finish, evaluate, write what the commit will name.

Protects: everything that a commit names is written before the driver hears of it, and nothing here commits.
"""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from stream_odml.config.stream import StreamConfig
from stream_odml.ingest.cache import PixelCache
from stream_odml.ingest.reasons import TransientReadError
from stream_odml.ingest.sampler import PKSampler
from stream_odml.learn.embedder import embed
from stream_odml.learn.settings import renewed
from stream_odml.learn.stage import StageDiverged, StageOutcome
from stream_odml.learn.world import World
from stream_odml.pipeline.later_stages import rows_to_embed
from stream_odml.pipeline.messages import StageOrder, StageProgress, StageResult
from stream_odml.pipeline.settling import Settling
from stream_odml.pipeline.sources import read_options
from stream_odml.pipeline.stage_folders import cache_root, emptied, stage_folder
from stream_odml.pipeline.stage_learner import build_learner, retried
from stream_odml.pipeline.stage_rows import OnDisk, Part, in_parts, write_rows
from stream_odml.pipeline.task_cache import Readers, cache_members, fill_cache, rows_digest, task_rows
from stream_odml.store.store import Store
from stream_odml.store.tables import quarantine_rows
from stream_odml.store.version_metrics import key

log = logging.getLogger(__name__)
FINISH_BATCH = 256
READ_ATTEMPTS = 5


class StageFailed(Exception):
    """The stage cannot become a version; the message says why, on every rank alike."""


class StageDeferred(Exception):
    """The stage cannot begin now, for a reason outside; the same attempt comes again."""


class StageRun:
    """Use in order: `open`, `step` until `total_steps`, `finish`, `close`."""

    def __init__(
        self,
        config: StreamConfig,
        order: StageOrder,
        store: Store,
        world: World,
        report: Callable[[StageProgress], None],
        readers: Readers | None = None,
        *,
        node: int = 0,
        leads: bool = True,
    ) -> None:
        """By default every image is decoded in this process. `node`: number of the rank's node in the training run;
        `leads`: whether the rank fills the node's cache."""
        self.config, self.order, self.world = config, order, world
        self._leads_node, self._report = leads, report
        self._store, self._readers = store, readers or Readers()
        learning = renewed(config.learning) if order.renewed else config.learning
        self._settings = retried(learning, order.retry)
        self._is_trained = order.kind not in ("embed", "renew")
        if not self._is_trained:
            self._settings = replace(self._settings, base_steps=0, stage_steps=0)
        self._began = time.perf_counter()
        self._first_step_s: float | None = None
        caches = cache_root(config, store.stream_id)
        self._cache_folder = stage_folder(caches, order, "node", node)
        self.rank_folder = stage_folder(caches, order, "rank", world.rank)
        """What this rank writes aside; emptied by whoever begins to use it."""

    # -- before -------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Decode the task into this node's cache and build the learner. Raises StageFailed."""
        self._say("caching")
        self._rows = self._agreed_rows()
        if not len(self._rows):
            raise StageFailed("the task has no items left: they were forgotten or replaced")
        deferrals = [why for why in self._all_ranks(self._fill() if self._leads_node else None) if why]
        if deferrals:
            raise StageDeferred(deferrals[0])
        self._cache = self._opened()
        self._leave_out_lost()
        self._train = np.flatnonzero(~self._held & ~self._lost)
        labels = self._cache.labels[self._train]
        self._classes, self._labels = np.unique(labels, return_inverse=True)
        if self._is_trained:
            s, seed, ranks = self._settings, self.config.seed, self.world.size
            try:
                self._sampler = PKSampler(self._labels, s.classes_per_batch, s.images_per_class, seed, ranks)
            except ValueError as error:
                raise StageFailed(str(error)) from error
        self.learner = build_learner(
            self._store,
            self.order,
            self._settings,
            n_classes=len(self._classes),
            seed=self.config.seed,
            world=self.world,
        )
        self._say("training")

    def _agreed_rows(self) -> pa.Table:
        """Return the task's living items on which all ranks agree: one may read the store a commit later."""
        while True:
            rows = task_rows(self._store, self.order.shards, self.order.parent)
            rows = rows_to_embed(self._store, self.order, rows)
            if len(set(self._all_ranks(rows_digest(rows, self.order.shards)))) == 1:
                return rows
            time.sleep(0.2)
            self._store.refresh()

    def _opened(self) -> PixelCache:
        """Return this node's cache, as far as it was filled."""
        members = cache_members(self._rows, self.order.shards)
        return PixelCache(self._cache_folder, members, self.config.model.image_size)

    def _fill(self) -> str | None:
        """Fill this node's cache; why that has to wait, or None."""
        for tried in range(READ_ATTEMPTS):
            try:
                fill_cache(
                    self._opened(),
                    self.order.shards,
                    partial(read_options, self.config),
                    max_pixels=self.config.ingest.max_pixels,
                    hang_s=self.config.ingest.hang_s,
                    readers=self._readers,
                )
                return None
            except TransientReadError as error:
                why = f"images of the task are unreachable: {error}"
                log.warning("%s; asking again", why)
                time.sleep(2.0**tried)
        return why

    def _leave_out_lost(self) -> None:
        """Agree on the rows to do without: those that any node could not have. Raises StageFailed if none is left."""
        self._held = self._rows["held_out"].to_numpy(zero_copy_only=False)
        self._lost = np.logical_or.reduce(self._all_ranks(self._cache.lost()))
        by_rank = self._all_ranks(self._cache.lost_rows() if self._leads_node else [])
        problems = {(shard, one.row): one for rows in by_rank for shard, one in rows}
        why = f"left out of {self.order.task}"
        self._lost_rows = quarantine_rows(
            (shard, row, str(one.reason), f"{why}: {one.detail}", one.first_bytes)
            for (shard, row), one in problems.items()
        )
        if problems:
            first = next(iter(problems.values()))
            count = f"{len(problems)} of the {len(self._rows)} images of {self.order.task} cannot be read any more"
            log.warning("%s, first: %s", count, first.detail)
            if self._lost.all():
                raise StageFailed(f"{count}, first: {first.reason}: {first.detail}")

    # -- during -------------------------------------------------------------------------------------------------

    def step(self) -> None:
        """Make one step on this rank's slice of the global batch. Raises StageFailed for a loss that is not finite."""
        began = time.perf_counter()
        chosen = self._sampler.slice(self.learner.next_step, self.world.rank)
        pixels = torch.from_numpy(self._cache.batch(self._train[chosen]))
        labels = torch.from_numpy(self._labels[chosen])
        loaded = time.perf_counter()
        begins = not self.learner.next_step and not self.order.improves
        first = time.time() - self.order.handed_at if begins else None
        self._first_step_s = self._first_step_s if first is None else first
        try:
            report = self.learner.step(pixels, labels)
        except StageDiverged as error:
            raise StageFailed(str(error)) from error
        ended = time.perf_counter()
        self._say(
            "training",
            losses=report.losses,
            step_s=(ended - began,),
            data_wait_s=(loaded - began,),
            first_step_s=first,
        )

    # -- after --------------------------------------------------------------------------------------------------

    def finish(self) -> StageResult:
        """Fit the maps, move the bank, embed the task anew, evaluate, and write all of it. Raises StageFailed."""
        self._say("evaluating")
        names = [self._cache.class_names[c] for c in self._classes]
        try:
            with emptied(self.rank_folder) as folder:
                on_disk = partial(OnDisk, folder)
                outcome = self.learner.finish(self._share(), names, len(self._rows), on_disk)
                parts = self._all_ranks(self._write_rows(outcome))
        except StageDiverged as error:
            raise StageFailed(str(error)) from error
        self._settling = Settling(
            self._store, self.config, self.order, self.world, self._all_ranks, outcome, tuple(parts)
        )
        return self.settle()

    def settle(self) -> StageResult:
        """Return the result again, for the store and the head as they are now; no image of the task is read."""
        result = self._settling.result(self._counts)
        # That an old image is gone is no fault of it.
        return result if self.order.kind == "renew" else replace(result, lost=self._lost_rows)

    def _share(self) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]]:
        """Yield this rank's part of the training images, each once."""
        for chosen in self._batches(np.arange(len(self._train))):
            yield self._cache.batch(self._train[chosen]), self._labels[chosen], self._train[chosen]

    def _write_rows(self, outcome: StageOutcome) -> str:
        """Return this rank's gallery rows of the task's items under the new model, held-out ones included."""
        path = f"artifacts/{self.order.version_id}/rows-{self.world.rank}.parquet"
        held: Iterator[Part] = (
            (some, embed(outcome.student, self._cache.batch(some), self.world.device))
            for some in self._batches(np.flatnonzero(self._held & ~self._lost))
        )
        parts = chain(in_parts(outcome.indices, outcome.embeddings), held)
        codes = self._store.row_codes
        write_rows(self.rank_folder / "rows.parquet", self._rows, parts, self.order.version_id, codes)
        self._store.files.upload(path, self.rank_folder / "rows.parquet")
        return path

    def _batches(self, images: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
        own = images[self.world.rank :: self.world.size]
        return (own[start : start + FINISH_BATCH] for start in range(0, len(own), FINISH_BATCH))

    def _counts(self) -> dict[str, Any]:
        figures: dict[str, Any] = {
            key("kind"): self.order.kind,
            "images": float(len(self._train)),
            "classes": float(len(self._classes)),
            "lost_images": float(self._lost.sum()),
            "steps": float(self.learner.total_steps),
            "seconds": time.perf_counter() - self._began,
            "workers": float(self.world.size),
        }
        if self._first_step_s is not None:
            figures["boundary_to_first_step_s"] = self._first_step_s
        return figures

    def close(self) -> None:
        """Remove the task's pixels from this node."""
        if self._leads_node:
            shutil.rmtree(self._cache_folder, ignore_errors=True)

    # -- between ------------------------------------------------------------------------------------------------

    def _say(self, phase: str, **more: Any) -> None:
        learner, order = getattr(self, "learner", None), self.order
        steps = (learner.next_step, learner.total_steps) if learner else (0, 0)
        self._report(StageProgress(phase, order.task, order.version_id, order.depth, *steps, **more))

    def _all_ranks(self, value: Any) -> list[Any]:
        values = [value]
        if self.world.size > 1:
            values = [None] * self.world.size
            dist.all_gather_object(values, value)
        return values
