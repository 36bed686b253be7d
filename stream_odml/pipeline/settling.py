"""From a trained student to what the driver commits: figures, the gate, artifacts, and under a discriminant head its
solution. A stage that improves what is learnt is settled again where the head moved while it was learnt.

Protects: everything that a commit names is written before the driver hears of it; what is settled is a function of the
stage's rows, its maps and the store, so that it can be repeated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from stream_odml.config.stream import StreamConfig
from stream_odml.learn.embedder import embedder_to_bytes
from stream_odml.learn.finish import StageOutcome
from stream_odml.learn.trained_layer import moved_layer
from stream_odml.learn.world import World
from stream_odml.models.canaries import canaries_of
from stream_odml.pipeline.estimating import estimate_old
from stream_odml.pipeline.evaluating import Finder, beside_earlier, by_cosine, by_head, evaluate_stage
from stream_odml.pipeline.fast_stage import estimate_both, few_images, head_files, solve_stage, trunk_files
from stream_odml.pipeline.gate import FEW_QUERIES, decided
from stream_odml.pipeline.held_out import shared_held_out
from stream_odml.pipeline.held_out_rows import HeldOut
from stream_odml.pipeline.messages import StageOrder, StageResult
from stream_odml.store.artifacts import (
    BACKWARD,
    BANK,
    CANARIES,
    FORWARD,
    STUDENT,
    ArtifactRef,
    write_artifact,
)
from stream_odml.store.store import Store


@dataclass(frozen=True)
class Settling:
    """What every rank holds after the last pass of a stage; `result` is called by all of them together."""

    store: Store
    config: StreamConfig
    order: StageOrder
    world: World
    all_ranks: Callable[[Any], list[Any]]
    """Gives the value of each rank to every rank."""
    outcome: StageOutcome
    parts: tuple[str, ...]
    """Store paths of the rows that the ranks wrote."""

    def result(self, counts: Callable[[], dict[str, Any]]) -> StageResult:
        """Return what the driver commits, on the first rank. `counts`: figures that are not measured here."""
        self.store.refresh()  # what was forgotten meanwhile is not there to be read
        order = self._under_head()
        held = self._held_out(order)
        if self.world.rank:
            return StageResult(order.version_id, order.parent, order.task)
        if self.config.solves_head:
            return self._solved(order, held, counts)
        figures = {**self._measured(order, held), **counts()}
        return decided(self.config.gate, order, figures, self._artifacts(order), self.parts)

    def _under_head(self) -> StageOrder:
        """Return the order, from the head of the moment where it improves what is learnt: rank 0 chooses for all."""
        if not self.order.improves:
            return self.order
        may = self.store.open_attempt(self.order.version_id) is not None
        return replace(
            self.order, parent=self.all_ranks(self.store.tree.head if may else self.order.parent)[0]
        )

    def _held_out(self, order: StageOrder) -> HeldOut | None:
        """Return held-out images under both models; None on all ranks but the first, or if there are too few."""
        config = self.config
        if self._makes_exact(order):
            return None
        if order.kind == "renew":  # one of many small steps
            config = config.model_copy(update={"evaluation": few_images(config.evaluation)})
        return shared_held_out(self.store, order, config, self.outcome.student, self.world, self.all_ranks)

    def _makes_exact(self, order: StageOrder) -> bool:
        """Return whether items that were taken over by a map from another model's features come to be as the
        model embeds them. What they are replaced by cannot be compared with them: predicted items lie closer to
        their class."""
        shards = self.store.ledger.shards
        return order.kind == "renew" and any(shards[ref.shard_id].mapped_error > 0 for ref in order.shards)

    def _solved(
        self, order: StageOrder, held: HeldOut | None, counts: Callable[[], dict[str, Any]]
    ) -> StageResult:
        """Return the same under a discriminant head, which is solved from the rows as they will be stored."""
        store = self.store
        old, outcome = store.head_of(order.parent), self.outcome
        keeps_trunk, layer_lD = order.kind in ("embed", "renew"), outcome.layer_lD
        if order.kind != "trunk":
            layer_lD = old.layer_lD if keeps_trunk else moved_layer(old.layer_lD, outcome.backward)
        solved = store.again(
            partial(solve_stage, store, order, self.config, outcome.forward, self.parts, layer_lD)
        )
        figures = self._measured(order, held, by_head(solved.head), by_head(old))
        few = figures.get("queries/union", 0.0) < FEW_QUERIES
        if order.improves and few and not self._makes_exact(order):
            figures |= store.again(lambda: estimate_both(store, order.parent, old, solved))
        figures |= {**counts(), **solved.figures}
        artifacts = trunk_files(store, order.parent) if keeps_trunk else self._artifacts(order)
        artifacts |= head_files(store, order.version_id, solved)
        return decided(self.config.gate, order, figures, artifacts, self.parts)

    def _artifacts(self, order: StageOrder) -> dict[str, ArtifactRef]:
        student = embedder_to_bytes(self.outcome.student)
        contents = {
            STUDENT: student,
            CANARIES: canaries_of(student),
            FORWARD: self.outcome.forward.to_bytes(),
            BACKWARD: self.outcome.backward.to_bytes(),
        }
        if not self.config.solves_head:
            contents[BANK] = self.outcome.bank.to_bytes()
        files = self.store.files
        return {name: write_artifact(files, order.version_id, name, data) for name, data in contents.items()}

    def _measured(
        self, order: StageOrder, held: HeldOut | None, after: Finder = by_cosine, before: Finder = by_cosine
    ) -> dict[str, Any]:
        """Return figures of the new version: drift, and recall where images are held out."""
        drift = {} if order.kind == "renew" else self.outcome.drift
        figures: dict[str, Any] = {f"drift/{name}": float(value) for name, value in drift.items()}
        if held is not None:
            figures |= evaluate_stage(held, self.outcome.forward, order.own, after, before)
            figures |= beside_earlier(self.store, order.parent, figures, self.config.held_out_set)
        if figures.get("queries/old", 0.0) < FEW_QUERIES and not self.config.solves_head:
            figures |= estimate_old(self.store, order.parent, self.outcome, self.config.seed)
        return figures
