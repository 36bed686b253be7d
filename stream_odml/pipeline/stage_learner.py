"""The learner of one attempt: the parent's model, bank and maps out of the store, and the settings of a retry."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.embedder import embedder_from_bytes
from stream_odml.learn.settings import StageSettings
from stream_odml.learn.stage import StageLearner
from stream_odml.learn.trunk_gap import of_tasks
from stream_odml.learn.virtual import virtual_versions
from stream_odml.learn.world import World
from stream_odml.pipeline.messages import StageOrder
from stream_odml.store.artifacts import BANK, STUDENT
from stream_odml.store.store import Store
from stream_odml.store.versions import VersionTree

MAX_OLDER = 4
"""Older trunks whose virtual features a stage distils: each is a map of D x D numbers."""


def build_learner(
    store: Store, order: StageOrder, settings: StageSettings, *, n_classes: int, seed: int, world: World
) -> StageLearner:
    """Return the learner of `order`, at its first step."""
    parent = order.parent
    old = embedder_from_bytes(store.artifact(parent, STUDENT))
    bank = parent_bank(store, parent, old.out_dim)
    maps: dict[str, DriftMap] = {}
    moves_trunk = order.kind == "slow"
    if moves_trunk:
        settings = of_tasks(settings, len(order.own))
    if settings.virtual == "affine" or moves_trunk:
        wanted = older_trunks(store.tree, parent) if moves_trunk else virtual_versions(bank)
        maps = store.mapper.out_of(store.tree, parent, wanted)
    return StageLearner(
        settings,
        old,
        bank,
        n_classes=n_classes,
        version_id=order.version_id,
        seed=seed,
        world=world,
        backward_maps=maps,
        moves_trunk=moves_trunk,
    )


def older_trunks(tree: VersionTree, parent: str) -> list[str]:
    """Return the last versions under each trunk before the parent's, oldest first, at most MAX_OLDER; without
    the first trunk of all, which learnt nothing here."""
    lineage = tree.lineage(parent)
    last = [a for a, b in pairwise(lineage) if not tree.same_trunk(a, b)]
    return [v for v in last if not tree.same_trunk(v, lineage[0])][-MAX_OLDER:]


def retried(settings: StageSettings, refusals: int) -> StageSettings:
    """Return settings after so many refusals: each makes distillation 4 times stronger and halves the rate."""
    if not refusals:
        return settings
    factor = 4.0**refusals
    return replace(
        settings,
        weight_old=settings.weight_old * factor,
        weight_distill=max(settings.weight_distill, 1.0) * factor,
        weight_composites=max(settings.weight_composites, 1.0) * factor,
        weight_hold=settings.weight_hold * factor,
        learning_rate=settings.learning_rate / 2**refusals,
        base_learning_rate=settings.base_learning_rate / 2**refusals,
    )


def parent_bank(store: Store, parent: str, dim: int) -> ClassBank:
    """Return the bank of a version; empty for the initial model."""
    if BANK not in store.tree.get(parent).artifacts:
        return ClassBank.empty(dim)
    return ClassBank.from_bytes(store.artifact(parent, BANK))
