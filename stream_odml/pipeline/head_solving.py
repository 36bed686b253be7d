"""From sums and stored features to the sums and the head of a new version. Loads no torch, reads no image.

Protects: what is summed is what is stored, so that it can be summed again and taken out again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings, solve_head
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.feature_codes import FeatureCodes, encode
from stream_odml.learn.head_choice import choose_head, sample_rows
from stream_odml.store.store import Store
from stream_odml.store.sums import TrainingRows
from stream_odml.store.tables import features_of
from stream_odml.store.version_metrics import key

CHOSEN = ("width", "shrinkage", "new_shrinkage", "new_bonus")


@dataclass(frozen=True, eq=False)
class Items:
    """Training items with their features as stored, of one trunk."""

    keys: Sequence[str]
    """Names that are unique, by which a sample is drawn."""
    classes: Sequence[str]
    features: FeatureCodes

    def __len__(self) -> int:
        return len(self.keys)

    def at(self, rows: NDArray[np.int64]) -> Items:
        """Return some rows."""
        return Items(
            [self.keys[row] for row in rows], [self.classes[row] for row in rows], self.features[rows]
        )


@dataclass(frozen=True, eq=False)
class Solved:
    """Sums and head of a new version, the items by which it was chosen, and what there is to say of it."""

    sums: ClassSums
    head: DiscriminantHead
    sample: Items
    figures: Mapping[str, float]


def solve(before: ClassSums, task: Items, learnt: TrainingRows | None, dim: int) -> Solved:
    """Return the head of what `before` sums and of the task's items.

    `learnt`: what is stored of the items in `before`. The settings are chosen by a bounded sample of these and of the
    task's; the features of no others are read. `dim`: the greatest length of the known part.
    """
    sums = before.plus(ClassSums.of(before.lift, task.features, list(task.classes)))
    sample = task.at(sample_rows(task.keys, task.classes)) if learnt is None else _sampled(learnt, task)
    settings = choose_head(sums, sample.features, list(sample.classes), HeadSettings(dim=dim))
    head = solve_head(sums, settings)
    figures = {
        **{key("head", name): float(asdict(settings)[name]) for name in CHOSEN},
        key("head", "dim"): float(head.known_dim),
        key("head", "classes"): float(len(sums)),
        key("head", "items"): float(sums.n_items),
        key("head", "sample"): float(len(sample)),
    }
    return Solved(sums, head, sample, figures)


def _sampled(learnt: TrainingRows, task: Items) -> Items:
    """The sample of all items, in the order in which `sample_rows` draws it."""
    n = len(learnt)
    keys, classes = [*learnt.keys, *task.keys], [*learnt.classes, *task.classes]
    rows = sample_rows(keys, classes)
    ordered = np.sort(rows)  # as stored features are read
    older, mine = ordered[ordered < n], ordered[ordered >= n] - n
    features = _joined([learnt.features(older), task.features[mine]])
    drawn = Items([keys[row] for row in ordered], [classes[row] for row in ordered], features)
    return drawn.at(np.searchsorted(ordered, rows))


def rows_as_items(store: Store, parts: Sequence[str], left: TrainingRows, forward: DriftMap) -> Items:
    """Return the task's training items as they will be stored: of the rows that a stage has written (paths of the
    store), and of `left` those that it could not embed anew, which `forward` maps."""
    found = []
    for part in parts:
        with store.files.local(part) as path:
            rows = pq.read_table(path)
        found.append(rows.filter(pc.invert(rows["held_out"])))
    rows = pa.concat_tables(found)
    anew = Items(rows["item_id"].to_pylist(), rows["class_name"].to_pylist(), features_of(rows, store.dim))
    names = frozenset(anew.keys)
    stayed = np.array([row for row, key in enumerate(left.keys) if key not in names], np.int64)
    if not len(stayed):
        return anew
    # In float64, as it is done whenever these rows are read.
    moved = encode(forward.apply(left.features(stayed).decode().astype(np.float64)), anew.features.format)
    return Items(
        [*anew.keys, *(left.keys[row] for row in stayed)],
        [*anew.classes, *(left.classes[row] for row in stayed)],
        _joined([anew.features, moved]),
    )


def _joined(parts: Sequence[FeatureCodes]) -> FeatureCodes:
    return FeatureCodes(
        np.concatenate([part.codes_nD for part in parts]), np.concatenate([part.scale_n for part in parts])
    )
