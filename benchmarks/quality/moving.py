"""One run of `ours`: the head is solved within seconds of every task, and the trunk moves where that serves more.

Whether it is tried is decided by the product's rule (`learn/trunk_gap.py`), or, with `trunk=distilled`, it is with
every task: on all that has not trained it, of which those of a refused stage wait for more.
Whether it is published, by the product's floor (`pipeline/gate.py`): Recall@1 of images that neither the stage nor the
two heads that are compared have seen. The head that is published is then solved with all.
"""

# M measured images   N learnt images   D trunk feature

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.quality.data import Ints
from benchmarks.quality.exact import ExactRun, moved, stored
from benchmarks.quality.map_run import MapRun
from benchmarks.quality.methods import EXACT, MOVING, Method
from benchmarks.quality.rival_run import RivalRun
from benchmarks.quality.state import REFUSED, TRAINED, WAITING, Floats, RunState, SolvedState
from benchmarks.quality.study import Run, Study, Tick, version_name
from stream_odml.config.gate import GateConfig
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import solve_head
from stream_odml.learn.drift import DriftMap, IdentityMap, compose
from stream_odml.learn.embedder import Embedder
from stream_odml.learn.feature_codes import encode
from stream_odml.learn.finish import StageOutcome
from stream_odml.learn.lift import Float64s
from stream_odml.learn.trunk_gap import is_tried_again, is_worth_moving, of_tasks, trunk_need
from stream_odml.pipeline.evaluating import by_head, change_error
from stream_odml.pipeline.gate import floor
from stream_odml.pipeline.head_solving import HeadChoice, Solved
from stream_odml.pipeline.stage_learner import MAX_OLDER
from stream_odml.store.version_metrics import key

HELD_OUT, FEW_IMAGES = 0.2, 8
"""Share of a class's images that the floor looks at, two at least; none of a class of fewer images."""

FLOOR, SERVED = key("parent_recall_at_1", "union"), key("recall_at_1", "union", "served")
RENEWED, ERROR = key("recall_at_1", "union", "reextracted"), key("change_error", "union")
"""Names by which the product's floor knows the figures."""


def run_of(study: Study, method: Method, seed: int, tick: Tick) -> Run:
    """The run of a method, by the kind of its head and by what becomes of its trunk."""
    if method.preset in MOVING:
        return MovingRun(study, method, seed, tick)
    if method.rival is not None:
        return RivalRun(study, method, seed, tick)
    if method.map_rival is not None:
        return MapRun(study, method, seed, tick)
    return (ExactRun if method.preset in EXACT else Run)(study, method, seed, tick)


@dataclass(frozen=True)
class _Move:
    """A stage of the trunk that is published: its maps, and what it embedded anew."""

    outcome: StageOutcome
    images_N: Ints
    features_ND: Floats
    tasks: Sequence[int]


class MovingRun(ExactRun):
    """Stages of one method and seed; resumes after the last finished one."""

    def _learn(self, state: RunState, stage: int) -> None:
        state.stage = stage
        self._solve(state, IdentityMap(), IdentityMap())
        solved = self._solved
        assert solved is not None
        state.taken.append(WAITING)
        forward: DriftMap = IdentityMap()
        backward: DriftMap = IdentityMap()
        anew = [stage]
        assert state.solved is not None
        held, need = self._held_out(state.solved.images_N), self._need(state, solved)
        self._noted = {f"trunk_{name}": value for name, value in need.items()}
        tries = self.method.settings.trunk == "distilled" or is_worth_moving(need)
        tasks = self._due_tasks(state) if len(held) and tries else ()
        move = self._move(state, tasks, held) if tasks else None
        if move is not None:
            state.student = move.outcome.student
            forward, backward = move.outcome.forward, move.outcome.backward
            earlier = HeadChoice(state.solved.head.settings, *state.solved.chosen)
            layer_lD = self._layer(state, backward)
            self._solve_with(state, move.images_N, move.features_ND, earlier, None, layer_lD)
            anew = list(range(stage + 1)) if self._embeds_anew else list(move.tasks)
        state.forward.append(forward)
        state.backward.append(backward)
        self._measure(state, forward, np.isin(self.stream.arrival, anew))

    @property
    def _embeds_anew(self) -> bool:
        return self.method.preset == "ours_backfill"

    def _need(self, state: RunState, solved: Solved) -> dict[str, float]:
        pretrained = self.study.spec.starts_pretrained
        return trunk_need(
            solved.sums.names,
            self._trained(state),
            lambda: (solved.sample().codes, solved.sample().classes),
            pretrained=pretrained,
        )

    def _due_tasks(self, state: RunState) -> Sequence[int]:
        """Return tasks that wait for a stage of the trunk, with those of refused ones once they are enough; none as
        long as all their images are of one class, which teaches no metric."""
        waiting, refused = _tasks(state, WAITING), _tasks(state, REFUSED)
        if len(np.unique(self.study.images.labels[self._images_of(waiting + refused)])) < 2:
            return ()
        if not refused:
            return waiting
        both, trained = sorted(waiting + refused), _tasks(state, TRAINED)
        by_class = (Counter(self._names(self._images_of(tasks))) for tasks in (refused, both, trained))
        return both if is_tried_again(*by_class) else ()

    def _move(self, state: RunState, tasks: Sequence[int], held: Ints) -> _Move | None:
        """Train the trunk on tasks; None where it serves no more than the one before."""
        assert state.solved is not None
        stage, before = state.stage, state.solved
        images = self._images_of(tasks)
        outcome, seconds, steps = self._stage(
            of_tasks(self.method.settings, len(tasks)),
            state.student,
            state.bank,
            stage,
            self._backward(state),
            moves_trunk=True,
            images=images[~np.isin(images, held)],
        )
        state.train_s += seconds
        state.steps += steps
        own = np.isin(before.images_N, images)
        anew = own | self._embeds_anew
        features = moved(before, outcome.forward)
        renewed = features.copy()
        renewed[anew] = stored(self._embed(outcome.student, before.images_N[anew]))
        features[own] = renewed[own]
        layers = before.head.layer_lD, self._layer(state, outcome.backward)
        serves_n = self._found(before, state.student, before.features_ND, layers[0], held)
        would_n = self._found(before, outcome.student, features, layers[1], held)
        asked = before.images_N[np.isin(before.images_N, held)]
        figures = floor_figures(serves_n, would_n, self.study.images.labels[asked])
        self._noted = {**self._noted, "trunk_tasks": float(len(tasks))}
        if self._embeds_anew:
            renewed_n = self._found(before, outcome.student, renewed, layers[1], held)
            figures[RENEWED] = float(np.nanmean(renewed_n))
            self._noted["over_floor_renewed"] = figures[RENEWED]
        self._noted |= {"floor": figures[FLOOR], "over_floor": figures[SERVED]}
        published = floor(GateConfig(), figures, renewed=self._embeds_anew) is None
        for t in tasks:
            state.taken[t] = TRAINED if published else REFUSED
        return _Move(outcome, before.images_N, renewed, tasks) if published else None

    def _found(
        self,
        before: SolvedState,
        trunk: Embedder,
        features_ND: Floats,
        layer_lD: Float64s | None,
        held: Ints,
    ) -> Floats:
        """Return which held-out images find their class [n], as the trunk embeds them, among what is stored of them,
        under a head that was solved without them."""
        out = np.isin(before.images_N, held)
        names = self._names(before.images_N)
        lift = before.head.lift
        sums = ClassSums.of(
            lift, encode(features_ND[~out]), [n for n, o in zip(names, out, strict=True) if not o]
        )
        head = solve_head(sums, before.head.settings, layer_lD)
        queries = self._embed(trunk, before.images_N[out])
        classes = [n for n, o in zip(names, out, strict=True) if o]
        return by_head(head)(classes, queries, features_ND[out])

    def _images_of(self, tasks: Sequence[int]) -> Ints:
        return np.concatenate([self.stream.tasks[t].images for t in tasks])

    def _held_out(self, images_N: Ints) -> Ints:
        """A share of each class's learnt images, the same ones at every stage."""
        labels = self.study.images.labels[images_N]
        chosen = []
        for label in np.unique(labels):
            of_class = np.sort(images_N[labels == label])
            if len(of_class) >= FEW_IMAGES:
                random = np.random.default_rng((self.seed, 14, int(label)))
                chosen.append(random.permutation(of_class)[: max(2, round(HELD_OUT * len(of_class)))])
        return np.concatenate([np.empty(0, np.int64), *chosen])

    def _backward(self, state: RunState) -> dict[str, DriftMap]:
        """Maps out of the trunk of now into the last versions under earlier ones, as the product keeps them."""
        last = state.stage - 1
        ends = [k for k in range(last) if not isinstance(state.backward[k], IdentityMap)]
        return {version_name(k): compose(state.backward[k:last][::-1]) for k in ends[-MAX_OLDER:]}


def _tasks(state: RunState, taken: int) -> list[int]:
    """Return the tasks of which that became."""
    return [task for task, became in enumerate(state.taken) if became == taken]


def floor_figures(serves_n: Floats, would_n: Floats, labels_n: Ints) -> dict[str, float]:
    """Return what the floor compares, of the same queries before and after, 1 where their class was found and NaN where
    there is no other of it."""
    known_n = ~np.isnan(serves_n)
    change_n = would_n[known_n] - serves_n[known_n]
    error = change_error(change_n, labels_n[known_n])
    figures = {FLOOR: float(np.nanmean(serves_n)), SERVED: float(np.nanmean(would_n))}
    return figures if error is None else {**figures, ERROR: error}
