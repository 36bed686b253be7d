"""The fast stage: a closed task is learnt by solving the head anew from sums and stored features, in seconds.

Protects: no image is read, no model is loaded and nothing is committed here. What it gives is a function of what the
store holds: the order of items and the process that computes it do not matter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from stream_odml.config.stream import EvaluationConfig, StreamConfig
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead
from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.learn.lift import Lift
from stream_odml.pipeline import evaluating
from stream_odml.pipeline.gate import FEW_QUERIES, OVERRULED, verdict
from stream_odml.pipeline.head_finder import by_head
from stream_odml.pipeline.head_solving import Items, Solved, Training, earlier_choice, rows_as_items, solve
from stream_odml.pipeline.held_out_rows import HeldOut, assemble, choose
from stream_odml.pipeline.messages import StageOrder, StageResult
from stream_odml.pipeline.sums_ahead import SumsAhead
from stream_odml.store.artifacts import CANARIES, HEAD, STUDENT, SUMS, ArtifactRef, write_artifact
from stream_odml.store.store import Store
from stream_odml.store.sums import learnt_rows, sums_now, task_rows
from stream_odml.store.version_metrics import key
from stream_odml.store.versions import SUMS_SEQ

MAX_IMAGES = 4096
"""Held-out images that a fast stage measures on: more would take longer than its solution."""
NO_ITEMS = "the task has no training items left: they were forgotten, replaced or held out"


def fast_stage(
    store: Store, order: StageOrder, config: StreamConfig, ahead: SumsAhead | None = None
) -> StageResult:
    """Learn `order.task` from its parent: write SUMS and HEAD of the new version, or say why it must not be published.

    The store is read as it was last refreshed. A task of one class, or of one image, is learnt like any other.
    `ahead`: sums of its items that were made while they waited; the result is the same without.
    """
    began = time.perf_counter()
    solved = store.again(lambda: _solved(store, order, config, ahead or SumsAhead()))
    if solved is None:
        return StageResult(order.version_id, order.parent, order.task, refusal=NO_ITEMS)
    figures = {**solved.figures, **_measured(store, order, config, solved), "steps": 0.0}
    figures["seconds"] = time.perf_counter() - began
    return finished(store, order, config, solved, figures, trunk_files(store, order.parent))


def _solved(store: Store, order: StageOrder, config: StreamConfig, ahead: SumsAhead) -> Solved | None:
    task = task_rows(store, order.parent, _shards(order))
    if not len(task):
        return None
    before = sums_now(store, order.parent)
    return _beside_learnt(store, order, config, task, before, ahead.of(task, before.lift))


def solve_stage(
    store: Store, order: StageOrder, config: StreamConfig, forward: DriftMap, parts: Sequence[str]
) -> Solved:
    """Return sums and head after a stage that wrote rows of the task (`parts`): under a new trunk, whose map from the
    parent's is `forward`, or for an order to `embed` under the parent's."""
    left = task_rows(store, order.parent, _shards(order))
    task = rows_as_items(store, parts, left, forward)
    if order.kind == "embed":
        return _beside_learnt(store, order, config, task, sums_now(store, order.parent))
    # Of what another trunk embedded nothing can be summed under this one.
    lift = Lift(store.dim, config.model.lift, config.seed)
    return _noted(store, task, solve(ClassSums.empty(lift), task, None, config.model.dim))


def _beside_learnt(
    store: Store,
    order: StageOrder,
    config: StreamConfig,
    task: Training,
    before: ClassSums,
    of_task: ClassSums | None = None,
) -> Solved:
    """Solve a task under its parent's trunk, with the settings of the parent's head where they still hold."""
    solved = solve(
        before,
        task,
        learnt_rows(store, order.parent),
        config.model.dim,
        earlier=earlier_choice(store, order.parent),
        growth=config.learning.choice_growth,
        of_task=of_task,
    )
    return _noted(store, task, solved)


def _noted(store: Store, task: Training, solved: Solved) -> Solved:
    more = {
        SUMS_SEQ: store.ledger.seq,
        "images": float(len(task)),
        "classes": float(len(set(task.classes))),
    }
    return replace(solved, figures={**solved.figures, **more})


def _shards(order: StageOrder) -> list[str]:
    return [shard.shard_id for shard in order.shards]


def trunk_files(store: Store, version: str) -> dict[str, ArtifactRef]:
    """Return the files of a version's trunk, which its children name as theirs."""
    refs = store.tree.get(version).artifacts
    return {name: refs[name] for name in (STUDENT, CANARIES) if name in refs}


def finished(
    store: Store,
    order: StageOrder,
    config: StreamConfig,
    solved: Solved,
    figures: dict[str, Any],
    artifacts: dict[str, ArtifactRef],
    rows: Sequence[str] = (),
) -> StageResult:
    """Return what the driver commits: sums and head written beside `artifacts`, or the refusal of the gate."""
    refusal = verdict(config.gate, figures)
    if refusal is not None and order.anyway:
        figures, refusal = {**figures, OVERRULED: refusal}, None
    contents = {SUMS: solved.sums.to_bytes(), HEAD: solved.head.to_bytes()}
    written = {
        name: write_artifact(store.files, order.version_id, name, data) for name, data in contents.items()
    }
    return StageResult(
        order.version_id, order.parent, order.task, {**artifacts, **written}, tuple(rows), figures, refusal
    )


def _measured(store: Store, order: StageOrder, config: StreamConfig, solved: Solved) -> dict[str, Any]:
    """Recall of held-out items by the new head and by the parent's, from what the gallery holds of them; of old
    classes also of learnt items, where few are held out."""
    heads = store.head_of(order.parent), solved.head
    evaluation = config.evaluation.model_copy(
        update={"max_images": min(config.evaluation.max_images, MAX_IMAGES)}
    )
    held = store.again(lambda: _held_out(store, order, evaluation, config.seed))
    figures: dict[str, Any] = {}
    if held is not None:
        old, new = (by_head(head) for head in heads)
        figures = evaluating.evaluate_stage(held, IdentityMap(), order.task, new, old)
        lost = evaluating.forgetting(store, order.parent, figures)
        figures |= {} if lost is None else {"forgetting": lost}
    if figures.get("queries/old", 0.0) < FEW_QUERIES:
        figures |= _estimated(*heads, solved.sample())
    return figures


def _held_out(store: Store, order: StageOrder, evaluation: EvaluationConfig, seed: int) -> HeldOut | None:
    rows = choose(store, order.parent, order.task, evaluation, seed)
    there = np.ones(len(rows), bool)
    return assemble(store, order.parent, order.task, rows, there)


def _estimated(old: DiscriminantHead, new: DiscriminantHead, sample: Items) -> dict[str, float]:
    """What the new head costs old classes, by items that both heads were solved with."""
    known = [row for row, name in enumerate(sample.classes) if old.knows(name)]
    if len(known) < 2:
        return {}
    names, labels = np.unique(np.array([sample.classes[row] for row in known], np.str_), return_inverse=True)
    h_nD = sample.features(np.array(known)).decode()
    held = HeldOut.of_features(h_nD, labels.astype(np.int64), [str(name) for name in names])
    found = {
        name: by_head(head)(held, h_nD, h_nD)
        for name, head in (
            (key("parent_recall_at_1", "old", "estimated"), old),
            (key("recall_at_1", "old", "estimated"), new),
        )
    }
    return {name: float(np.nanmean(hits)) for name, hits in found.items() if not np.isnan(hits).all()}
