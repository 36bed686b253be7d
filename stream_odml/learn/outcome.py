"""Results of a step and of a stage: losses, the new model, its bank, drift maps and the task's embeddings."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from stream_odml.learn.bank import ClassBank
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.embedder import Embedder


class StageDiverged(ValueError):
    """The loss or the embeddings are not finite."""


@dataclass(frozen=True)
class StepReport:
    """Weighted loss terms of one step, with their sum as `total`."""

    losses: dict[str, float]
    step: int


@dataclass(frozen=True, eq=False)
class StageOutcome:
    """The result of a stage. All but `indices` and `embeddings` is the same on every rank."""

    student: Embedder
    bank: ClassBank
    forward: DriftMap
    """Parent's space -> child's."""
    backward: DriftMap
    """Child's space -> parent's."""
    indices: NDArray[np.int64]
    """Of this rank's images, as given."""
    embeddings: NDArray[np.float32]
    """Their raw g under the new model, [n_local, d]."""
    drift: dict[str, float] = field(default_factory=dict)
    """images; parent_variance (mean |g_O - mean|^2); drift_relative (|g_S - g_O| over |g_O|), forward_unexplained and
    bank_shift before the model is whitened; forward_error (mean square by which the forward map misses classes that it
    was not fitted to) after it."""
