"""What a stage would cost the classes whose images are gone, estimated from their stored vectors and the drift map."""

# n stored vectors of old classes   d embedding

from __future__ import annotations

import numpy as np

from stream_odml.learn.drift import DriftMap
from stream_odml.learn.evaluation import Labels, Retrieval, nearest_is_relevant
from stream_odml.learn.packing import Floats


def estimated_recall(
    stored_nd: Floats, labels_n: Labels, forward: DriftMap, error: float, seed: int
) -> tuple[float, float] | None:
    """Return (before, after): served Recall@1 of old classes under the parent and under the child; None if no
    class has two.

    Before: each stored vector, in the parent's space, against the others. After: the gallery is mapped; a query, which
    the child would embed itself, is taken for its mapped vector plus noise of mean square `error`, by which the map
    missed the classes that it was not fitted to. The noise is isotropic: an estimate, not a bound.
    """
    before = _mean(nearest_is_relevant(Retrieval.leave_one_out(stored_nd, labels_n)))
    mapped_nd = forward.apply(np.ascontiguousarray(stored_nd, np.float32))
    noise_nd = np.random.default_rng(seed).normal(size=mapped_nd.shape) * (error / mapped_nd.shape[1]) ** 0.5
    queries_nd = (mapped_nd + noise_nd).astype(np.float32)
    own_n = np.arange(len(labels_n))
    after = _mean(nearest_is_relevant(Retrieval(queries_nd, labels_n, mapped_nd, labels_n, own_n)))
    return None if before is None or after is None else (before, after)


def _mean(found: Floats) -> float | None:
    known = found[~np.isnan(found)]
    return float(known.mean()) if len(known) else None
