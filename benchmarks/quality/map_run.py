"""One run of a rival that carries the gallery over, on the models of another method."""

# M measured images   d embedding

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from benchmarks.quality.data import Ints
from benchmarks.quality.measure import Measured
from benchmarks.quality.methods import Method
from benchmarks.quality.state import Floats, RunState
from benchmarks.quality.study import Run, Study, Tick
from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.zero import unit_rows


class MapRun(Run):
    """Stages of one map rival and seed. Begins anew where it was killed: what takes time are the models, and these are
    kept for every method that learns the same."""

    def __init__(self, study: Study, method: Method, seed: int, tick: Tick) -> None:
        super().__init__(study, method, seed, tick)
        self._back: list[DriftMap] = []
        """From each version to the one before it, where queries are mapped."""

    def _learn(self, state: RunState, stage: int) -> None:
        rival, parent, images = self.method.map_rival, state.student, self._seen(stage)
        assert rival is not None
        state.stage = stage
        outcome, seconds, steps = self._stage(self.method.settings, parent, state.bank, stage, {})
        state.student, state.bank = outcome.student, outcome.bank
        state.train_s += seconds
        state.steps += steps
        before, now = self._embed(parent, images), self._embed(outcome.student, images)
        if rival.side == "query":
            self._back.append(rival.fit(now, before, self.seed))
            self._measure(state, IdentityMap())
        else:
            self._measure(state, rival.fit(before, now, self.seed))

    def _compared(self, state: RunState, queries_Md: Floats, gallery_Md: Floats) -> tuple[Floats, Floats]:
        """Compare an item with the query as the model of the item would have embedded it: each version has d entries
        of its own, all of a query and of an item those of its version."""
        rival, last = self.method.map_rival, state.stage
        if rival is None or rival.side == "gallery":
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
        self.study.rows.append(self._labelled(rows, state.stage))

    def _compatibility(self, state: RunState) -> Iterator[Measured]:
        return iter(())
