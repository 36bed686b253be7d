"""One run of a rival on the trunk of the base stage, from the stored features that `exact_frozen` is solved from."""

# M measured images   D trunk feature

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.quality.data import Ints
from benchmarks.quality.exact import ExactRun
from benchmarks.quality.measure import Measured, nearest_by_cosine
from benchmarks.quality.rivals import Fitted
from benchmarks.quality.state import Floats, RunState, SolvedState
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import solve_head
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.lift import Float64s, Lift
from stream_odml.pipeline.head_solving import HeadChoice


class RivalRun(ExactRun):
    """Stages of one rival and seed; resumes after the last finished one."""

    _fitted: Fitted

    def _solve_with(
        self,
        state: RunState,
        images: Ints,
        features: Floats,
        earlier: HeadChoice | None,
        growth: float | None,
        layer_lD: Float64s | None,
    ) -> None:
        """Fit the rival; the sums are for the whitening that unseen classes are measured beside."""
        del earlier, layer_lD
        assert self.method.rival is not None
        lift = Lift(features.shape[1])
        self._sums = ClassSums.of(lift, encode(features), self._names(images))
        self._fitted = self.method.rival.fit(features, self.study.images.labels[images], self.seed)
        state.solved = SolvedState(images, features, solve_head(ClassSums.empty(lift)), (0.0, 0.0))

    def _versions(self, state: RunState, fresh_MD: Floats, forward: DriftMap) -> Iterator[Measured]:
        """Nothing: it has a fit, and no head of a version."""
        return iter(())

    def _bytes(self, state: RunState) -> dict[str, float]:
        return {"item_bytes": float(state.mapped_Md.shape[1] + 4)}

    def _views(self, state: RunState, galleries: dict[str, Floats]) -> tuple[Floats, dict[str, Floats]]:
        fitted = self._fitted
        # Nothing moves: the three forms of the gallery are one, but for the codes of what has just come.
        items = fitted.items(galleries["mapped"], self.labels_M)
        return fitted.queries(galleries["reextracted"]), dict.fromkeys(galleries, items)

    def _finder(
        self, state: RunState, fresh_MD: Floats, gallery_MD: Floats
    ) -> Callable[[Ints], Floats] | None:
        """Return nothing for one that orders classes: it has no score of classes to come."""
        if self._fitted.tells_classes:
            return None
        queries = self._fitted.queries(fresh_MD)
        return nearest_by_cosine(queries, self._fitted.items(gallery_MD, self.labels_M), self.labels_M)
