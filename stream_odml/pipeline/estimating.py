"""What a stage costs old classes where no image of theirs is held out: an estimate from stored vectors.

Protects: no image is read here, and what was forgotten is not looked at.
"""

from __future__ import annotations

import numpy as np
import pyarrow.compute as pc

from stream_odml.learn.evaluation import Labels, estimated_recall
from stream_odml.learn.finish import StageOutcome
from stream_odml.pipeline.held_out_rows import Floats, mapped_to
from stream_odml.pipeline.sampling import rows_of_classes
from stream_odml.store.store import Store
from stream_odml.store.tables import decoded
from stream_odml.store.version_metrics import key

SHARDS = 32
PER_CLASS = 4
MAX_VECTORS = 4096
"""Maximum stored vectors, so that the cost does not grow with the gallery."""


def estimate_old(store: Store, parent: str, outcome: StageOutcome, seed: int) -> dict[str, float]:
    """Return `parent_recall_at_1/old/estimated`, `recall_at_1/old/estimated`, and `task_spread`: the variance
    of the task's images over that of stored vectors, without which the estimate says nothing. Empty where
    nothing older was learnt."""
    vectors, labels = store.again(lambda: _stored(store, parent, seed))
    found = estimated_recall(vectors, labels, outcome.forward, outcome.drift["forward_error"], seed)
    if found is None:
        return {}
    variance = float(np.square(vectors - vectors.mean(0, dtype=np.float64)).sum(1).mean())
    figures = {key("task_spread"): outcome.drift["parent_variance"] / variance} if variance > 0 else {}
    names = (key("parent_recall_at_1", "old", "estimated"), key("recall_at_1", "old", "estimated"))
    return figures | dict(zip(names, found, strict=True))


def _stored(store: Store, parent: str, seed: int) -> tuple[Floats, Labels]:
    """Return vectors of learnt items in the parent's space and their labels, from shards drawn by `seed`."""
    random = np.random.default_rng(seed)
    learnt = store.tree.learnt(parent)
    ledger = store.ledger
    shards = sorted(
        s for s, state in ledger.shards.items() if state.task in learnt and ledger.living_classes(s)
    )
    shards = [shards[i] for i in random.permutation(len(shards))]
    looked = SHARDS
    rows = rows_of_classes(store, parent, shards[:looked], pc.scalar(True), PER_CLASS, seed)
    # Of items that were replaced or erased one by one nothing is left in their shard.
    while not len(rows) and looked < len(shards):
        looked *= 2
        rows = rows_of_classes(store, parent, shards[:looked], pc.scalar(True), PER_CLASS, seed)
    rows = rows.take(np.sort(random.permutation(len(rows))[:MAX_VECTORS]))
    _, labels = np.unique(np.array(rows["class_name"].to_pylist(), np.str_), return_inverse=True)
    vectors = decoded(rows, store.dim)
    return mapped_to(store, vectors, rows["version"], parent), labels.astype(np.int64)
