"""The fast stage: a closed task is learnt by solving the head anew from sums and stored features, in seconds.

Protects: no image is read, no model is loaded and nothing is committed here. What it gives is a function of what the
store holds: the order of items and the process that computes it do not matter.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from stream_odml.config.stream import EvaluationConfig, StreamConfig
from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings
from stream_odml.learn.drift import DriftMap, IdentityMap
from stream_odml.learn.lift import Float64s, Lift
from stream_odml.learn.trunk_gap import trained_share, trunk_need
from stream_odml.pipeline.evaluating import beside_earlier, by_head, evaluate_stage, mean_found
from stream_odml.pipeline.gate import FEW_QUERIES, decided
from stream_odml.pipeline.head_solving import Items, Solved, Training, earlier_choice, rows_as_items, solve
from stream_odml.pipeline.held_out_rows import Floats, HeldOut, assemble, choose
from stream_odml.pipeline.later_stages import trained_tasks
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
    store: Store,
    order: StageOrder,
    config: StreamConfig,
    ahead: SumsAhead | None = None,
    chosen: HeadSettings | None = None,
) -> StageResult:
    """Learn `order.task` from its parent: write SUMS and HEAD of the new version, or say why it must not be published.
    The store is read as it was last refreshed. A task of one class, or of one image, is learnt like any other. `ahead`:
    sums of its items that were made while they waited; the result is the same without. `chosen`: see `solve`."""
    began = time.perf_counter()
    solved = store.again(partial(_solved, store, order, config, ahead or SumsAhead(), chosen))
    if solved is None:
        return StageResult(order.version_id, order.parent, order.task, refusal=NO_ITEMS)
    figures = {**solved.figures, **_measured(store, order, config, solved), "steps": 0.0, key("kind"): "head"}
    figures["seconds"] = time.perf_counter() - began
    artifacts = {**trunk_files(store, order.parent), **head_files(store, order.version_id, solved)}
    return decided(config.gate, order, figures, artifacts)


def _solved(
    store: Store, order: StageOrder, config: StreamConfig, ahead: SumsAhead, chosen: HeadSettings | None
) -> Solved | None:
    task = task_rows(store, order.parent, _shards(order))
    if not len(task):
        return None
    before = sums_now(store, order.parent)
    return _beside_learnt(store, order, config, task, before, ahead.of(task, before.lift), chosen)


def solve_stage(
    store: Store,
    order: StageOrder,
    config: StreamConfig,
    forward: DriftMap,
    parts: Sequence[str],
    layer_lD: Float64s | None,
) -> Solved:
    """Return sums and head after a stage that wrote rows (`parts`): under a new trunk, whose map from the parent's is
    `forward`, or, for an order to `embed` or to `renew`, under the parent's. `layer_lD`: the layer that goes
    with the trunk."""
    shards, parent = _shards(order), order.parent
    left = task_rows(store, parent, shards)
    task = rows_as_items(store, parts, left, forward)
    lift = _lift_of(store, parent, config)
    trained = _trained_classes(store, order)
    solved_as = partial(solve, dim=config.model.dim, layer_lD=layer_lD, trained=trained)
    if order.kind == "trunk":
        # Of what weights from nothing embedded nothing can be summed under this trunk.
        return _noted(store, order, config, task, trained, solved_as(ClassSums.empty(lift), task, None))
    if order.kind == "slow":
        # Summed again, as mapped and coded: S <- A S Aᵀ is this but for what the codes round and unit lengths change,
        # and only what is stored can be subtracted to the last bit.
        learnt = learnt_rows(store, parent).without(shards).under(forward)
        solved = solved_as(learnt.sums(lift), task, learnt, earlier=earlier_choice(store, parent))
        return _noted(store, order, config, task, trained, solved)
    before = sums_now(store, parent)
    if order.kind == "renew":
        before = before.minus(left.sums(before.lift))
    return _beside_learnt(store, order, config, task, before)


def _lift_of(store: Store, parent: str, config: StreamConfig) -> Lift:
    """Return the root's own: sums of other random features are sums of another head's input."""
    sums = store.sums_of(parent)
    return Lift(store.dim, config.model.lift_of(store.dim), config.seed) if sums is None else sums.lift


def _beside_learnt(
    store: Store,
    order: StageOrder,
    config: StreamConfig,
    task: Training,
    before: ClassSums,
    of_task: ClassSums | None = None,
    chosen: HeadSettings | None = None,
) -> Solved:
    """Solve a stage's items under its parent's trunk, with the settings of the parent's head where they still hold."""
    learnt, trained = learnt_rows(store, order.parent), _trained_classes(store, order)
    solved = solve(
        before,
        task,
        learnt.without(_shards(order)) if order.kind == "renew" else learnt,
        config.model.dim,
        earlier=earlier_choice(store, order.parent),
        growth=config.learning.choice_growth,
        of_task=of_task,
        chosen=chosen,
        layer_lD=store.head_of(order.parent).layer_lD,
        trained=trained,
    )
    return _noted(store, order, config, task, trained, solved)


def _noted(
    store: Store, order: StageOrder, config: StreamConfig, task: Training, trained: set[str], solved: Solved
) -> Solved:
    known = solved.sums.names
    asks = config.learning.trunk == "auto"
    need = (
        trunk_need(
            known,
            trained,
            lambda: (solved.sample().codes, solved.sample().classes),
            pretrained=config.model.starts_pretrained or config.model.takes_vectors,
        )
        if asks
        else {"trained": trained_share(known, trained)}
    )
    more = {
        **{key("trunk", name): value for name, value in need.items()},
        SUMS_SEQ: store.ledger.seq,
        "images": float(len(task)),
        "classes": float(len(set(task.classes))),
    }
    return replace(solved, figures={**solved.figures, **more})


def _trained_classes(store: Store, order: StageOrder) -> set[str]:
    """Return the classes that the trunk of the order's version was trained on."""
    tasks = trained_tasks(store.ledger, store.tree, order.parent)
    tasks |= set(order.own) if order.kind in ("trunk", "slow") else set()
    shards = store.ledger.shards_of(tasks)
    return {name for shard in shards for name in store.ledger.shards[shard].classes}


def _shards(order: StageOrder) -> list[str]:
    return [shard.shard_id for shard in order.shards]


def trunk_files(store: Store, version: str) -> dict[str, ArtifactRef]:
    """Return the files of a version's trunk, which its children name as theirs."""
    refs = store.tree.get(version).artifacts
    return {name: refs[name] for name in (STUDENT, CANARIES) if name in refs}


def head_files(store: Store, version_id: str, solved: Solved) -> dict[str, ArtifactRef]:
    """Write sums and head of a version, and return them."""
    contents = {SUMS: solved.sums.to_bytes(), HEAD: solved.head.to_bytes()}
    return {name: write_artifact(store.files, version_id, name, data) for name, data in contents.items()}


def _measured(store: Store, order: StageOrder, config: StreamConfig, solved: Solved) -> dict[str, Any]:
    """Return recall of held-out items by the new head and by the parent's, from what the gallery holds of them; of old
    classes also of learnt items, where few are held out."""
    heads = store.head_of(order.parent), solved.head
    held = store.again(lambda: _held_out(store, order, few_images(config.evaluation), config.seed))
    figures: dict[str, Any] = {}
    if held is not None:
        old, new = (by_head(head) for head in heads)
        figures = evaluate_stage(held, IdentityMap(), order.own, new, old)
        figures |= beside_earlier(store, order.parent, figures, config.held_out_set)
    if figures.get("queries/old", 0.0) < FEW_QUERIES:
        figures |= _estimated(*heads, solved.sample())
    return figures


def few_images(evaluation: EvaluationConfig) -> EvaluationConfig:
    """Return the settings with MAX_IMAGES held-out images at most."""
    return evaluation.model_copy(update={"max_images": min(evaluation.max_images, MAX_IMAGES)})


def _held_out(store: Store, order: StageOrder, evaluation: EvaluationConfig, seed: int) -> HeldOut | None:
    rows = choose(store, order.parent, order.own, evaluation, seed)
    return assemble(store, order.parent, _shards(order), rows, np.ones(len(rows), bool))


def _estimated(old: DiscriminantHead, new: DiscriminantHead, sample: Items) -> dict[str, float]:
    """Return what the new head costs old classes, by items that both heads were solved with."""
    learnt = frozenset(old.names)
    known = [row for row, name in enumerate(sample.classes) if name in learnt]
    if len(known) < 2:
        return {}
    h_nD = sample.features(np.array(known)).decode()
    return _both_found("old", [sample.classes[row] for row in known], (old, h_nD), (new, h_nD))


def _both_found(
    split: str,
    classes: Sequence[str],
    before: tuple[DiscriminantHead, Floats],
    after: tuple[DiscriminantHead, Floats],
) -> dict[str, float]:
    """Return estimated Recall@1 of a split by the earlier and by the new head, each with features of its trunk."""
    found: dict[str, float] = {}
    for name, (head, h_nD) in (("parent_recall_at_1", before), ("recall_at_1", after)):
        recall = mean_found(by_head(head)(classes, h_nD, h_nD))
        found |= {} if recall is None else {key(name, split, "estimated"): recall}
    return found


def estimate_both(store: Store, parent: str, old: DiscriminantHead, solved: Solved) -> dict[str, float]:
    """Return Recall@1 of learnt items before a stage and after it, each by its head and in its trunk, where
    too few images are held out. Both heads were solved with these items, and the new trunk was trained on
    some: it flatters the stage."""
    learnt = learnt_rows(store, parent)
    row_of = {name: row for row, name in enumerate(learnt.keys)}
    drawn = solved.sample()
    mine = np.array([row for row, name in enumerate(drawn.keys) if name in row_of], np.int64)
    if len(mine) < 2:
        return {}
    sample = drawn.at(mine)
    rows = np.array([row_of[name] for name in sample.keys], np.int64)
    order = np.argsort(rows)
    was_nD, is_nD = learnt.features(rows[order]).decode(), sample.codes[order].decode()
    classes = np.array(sample.classes, np.str_)[order].tolist()
    return _both_found("union", classes, (old, was_nD), (solved.head, is_nD))
