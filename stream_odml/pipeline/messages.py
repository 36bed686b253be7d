"""Messages between driver, trainer and indexers: plain values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

from stream_odml.ingest.shard import ShardRef
from stream_odml.store.artifacts import ArtifactRef
from stream_odml.store.ledger_states import ShardState

StageKind = Literal["trunk", "embed", "head", "slow", "renew"]
IMPROVES: tuple[StageKind, ...] = ("slow", "renew")
"""Kinds of a stage whose tasks are learnt already: its result is published under the head of the moment."""


@dataclass(frozen=True)
class StageOrder:
    """One stage to learn. `version_id` names the attempt; `shards` are in landing order.

    `handed_at`, of a task that is due, is in seconds since the epoch; `retry` counts the refusals before this
    attempt; `anyway`: the result is published whatever the quality gate finds. `kind`: `trunk` is learnt by the
    trainer, step by step; `head` is solved from sums and stored features by a fast stage, which reads no image;
    `embed` is the same after the trainer has embedded the task's items anew, as another trunk had embedded them when
    they landed. Of what is learnt already, `slow` moves the trunk by the images of `tasks`, `renew` embeds the
    items of `shards` anew.
    """

    task: str
    version_id: str
    parent: str
    depth: int
    shards: tuple[ShardRef, ...]
    handed_at: float = 0.0
    retry: int = 0
    anyway: bool = False
    kind: StageKind = "trunk"
    tasks: tuple[str, ...] = ()
    """Of a `slow` stage; else `task` alone is learnt."""
    worst: bool = False
    """Of a `renew` stage, whether only the items that their map knows least are embedded; else all that no other has
    embedded by this trunk."""

    renewed: bool = False
    """Of a `slow` stage, whether what is stored is embedded anew after it, as far as is known."""

    @property
    def own(self) -> tuple[str, ...]:
        """The tasks whose classes are new to this stage."""
        return () if self.kind == "renew" else self.tasks or (self.task,)

    @property
    def improves(self) -> bool:
        """Whether its tasks are learnt already."""
        return self.kind in IMPROVES


@dataclass(frozen=True)
class Instruction:
    """What the trainer does next: a stage, nothing yet (`order` is None), or end."""

    order: StageOrder | None = None
    stop: bool = False


@dataclass(frozen=True)
class StageResult:
    """What a finished stage hands to the driver: references only, and the figures of its version. `rows` are store
    paths of Parquet parts with the task's items under the new model; `lost` are quarantine rows (Arrow) of those that
    could not be learnt from. `refusal` says why the stage must not be published; nothing else is used then."""

    version_id: str
    parent: str
    task: str
    artifacts: dict[str, ArtifactRef] = field(default_factory=dict)
    rows: tuple[str, ...] = ()
    metrics: dict[str, Any] = field(default_factory=dict)
    refusal: str | None = None
    lost: pa.Table | None = None


@dataclass(frozen=True)
class StageProgress:
    """The running stage as rank 0 reports it; durations in seconds of the steps since the last report."""

    phase: str = "idle"
    task: str = ""
    version: str = ""
    stage: int = 0
    step: int = 0
    total_steps: int = 0
    losses: dict[str, float] = field(default_factory=dict)
    step_s: tuple[float, ...] = ()
    data_wait_s: tuple[float, ...] = ()
    first_step_s: float | None = None
    workers: int = 0
    leader: str = ""
    """Host and process id of rank 0."""


def shard_ref(state: ShardState) -> ShardRef:
    """Return the reference that landed, from the ledger's row."""
    return ShardRef.from_dict(dict(state.detail))
