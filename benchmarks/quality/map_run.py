"""One run of a rival that carries the gallery over, on the models of another method."""

# M measured images   d embedding

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.quality.data import Ints
from benchmarks.quality.map_rivals import MapRival
from benchmarks.quality.measure import Measured
from benchmarks.quality.methods import Method
from benchmarks.quality.pseudo_replay import ClassMaps, PseudoReplay
from benchmarks.quality.state import Floats, RunState
from benchmarks.quality.study import Run, Study, Tick
from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.learn.embedder import Embedder
from stream_odml.zero import unit_rows


class MapRun(Run):
    """Stages of one map rival and seed. Begins anew where it was killed: what takes time are the models, and these are
    kept for every method that learns the same."""

    def __init__(self, study: Study, method: Method, seed: int, tick: Tick) -> None:
        super().__init__(study, method, seed, tick)
        self._back: list[DriftMap] = []
        """From each version to the one before it, where queries are mapped."""
        self._means: dict[int, Floats] = {}
        """Of each class learnt so far, raw, in the space of the newest model, where pseudo-replay needs them."""

    def _learn(self, state: RunState, stage: int) -> None:
        rival, parent, images = self.method.map_rival, state.student, self._seen(stage)
        assert rival is not None
        state.stage = stage
        if isinstance(rival, PseudoReplay):
            self._add_means(parent, stage - 1)
        outcome, seconds, steps = self._stage(self.method.settings, parent, state.bank, stage, {})
        state.student, state.bank = outcome.student, outcome.bank
        state.train_s += seconds
        state.steps += steps
        began, forward = self._clock(), self._fitted(state, parent, images)
        self._pass_s += self._clock() - began
        self._measure(state, forward)

    def _fitted(self, state: RunState, parent: Embedder, images: Ints) -> DriftMap:
        """Fit the rival, and return what maps the gallery."""
        rival, student = self.method.map_rival, state.student
        if isinstance(rival, PseudoReplay):
            models, pixels = (parent, student), self.study.images.pixels[images]
            maps = rival.fit(models, pixels, self._means, self.study.device, self.seed)
            self._means = {label: maps[label].apply(mean[None])[0] for label, mean in self._means.items()}
            return ClassMaps(maps, self.labels_M[self.stream.arrival < state.stage])
        assert rival is not None
        before, now = self._embed(parent, images), self._embed(student, images)
        if rival.side == "gallery":
            return rival.fit(before, now, self.seed)
        self._back.append(rival.fit(now, before, self.seed))
        return IdentityMap()

    def _add_means(self, model: Embedder, stage: int) -> None:
        """Add the class means of a task as the model that has learnt it embeds them."""
        images = self._seen(stage)
        g_nd, labels = self._embed(model, images), self.study.images.labels[images]
        self._means = {int(c): g_nd[labels == c].mean(axis=0) for c in np.unique(labels)} | self._means

    def _compared(self, state: RunState, queries_Md: Floats, gallery_Md: Floats) -> tuple[Floats, Floats]:
        """Compare an item with the query as the model of the item would have embedded it: each version has d entries
        of its own, all of a query and of an item those of its version."""
        rival, last = self.method.map_rival, state.stage
        if not isinstance(rival, MapRival) or rival.side == "gallery":
            return queries_Md, gallery_Md
        views = [queries_Md]
        for back in reversed(self._back):
            views.append(back.apply(views[-1]))
        version_M: Ints = np.minimum(self.stream.arrival, last)
        d, blocks = queries_Md.shape[1], last + 1
        items = np.zeros((len(gallery_Md), blocks, d), np.float32)
        items[np.arange(len(gallery_Md)), version_M] = gallery_Md
        queries = np.concatenate([unit_rows(view) for view in reversed(views)], axis=1)
        return queries, items.reshape(len(gallery_Md), blocks * d)

    def _keep(self, state: RunState, rows: list[Measured]) -> None:
        self._append(state, rows)

    def _compatibility(self, state: RunState) -> Iterator[Measured]:
        return iter(())
