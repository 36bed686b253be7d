"""From sums and stored features to the sums and the head of a new version. Loads no torch, reads no image.

Protects: what is summed is what is stored, so that it can be summed again and taken out again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from stream_odml.learn.class_sums import ClassSums
from stream_odml.learn.discriminant import DiscriminantHead, HeadSettings, solve_head
from stream_odml.learn.drift import DriftMap
from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.head_choice import choose_head, sample_rows
from stream_odml.learn.lift import Float64s, Lift
from stream_odml.learn.weighing import Weighing
from stream_odml.store.select import split_rows
from stream_odml.store.store import Store
from stream_odml.store.sums import TrainingRows
from stream_odml.store.tables import features_of, values
from stream_odml.store.version_metrics import key

CHOSEN = (
    "discriminant",
    "width",
    "shrinkage",
    "new_shrinkage",
    "knows_all",
    "layer",
    "new_scale",
    "new_bonus",
    "bonus_among_all",
)
CHOSEN_CLASSES, CHOSEN_ITEMS = key("head", "chosen_classes"), key("head", "chosen_items")

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Items:
    """Training items with their features as stored, of one trunk; `keys` are unique, a sample is drawn by them."""

    keys: Sequence[str]
    classes: Sequence[str]
    codes: FeatureCodes

    def __len__(self) -> int:
        return len(self.keys)

    def features(self, some: Ints) -> FeatureCodes:
        """Return those of some rows."""
        return self.codes[some]

    def sums(self, lift: Lift) -> ClassSums:
        """Return the class sums of all."""
        return ClassSums.of(lift, self.codes, list(self.classes))

    def at(self, rows: Ints) -> Items:
        """Return some rows."""
        return Items([self.keys[row] for row in rows], [self.classes[row] for row in rows], self.codes[rows])


Training = Items | TrainingRows
"""Training items whose features are at hand, or are read when asked for."""


@dataclass(frozen=True)
class HeadChoice:
    """Settings of a head, and the sums that they were chosen for."""

    settings: HeadSettings
    classes: float
    items: float

    def holds(self, sums: ClassSums, growth: float) -> bool:
        """Return whether neither classes nor items have grown or shrunk by that share since."""
        now = ((len(sums), self.classes), (sums.n_items, self.items))
        return all(before < (1 + growth) * count and count < (1 + growth) * before for count, before in now)


def earlier_choice(store: Store, version: str) -> HeadChoice | None:
    """Return how a version's head was chosen, and when; None for a head that nothing was left to choose by."""
    metrics = store.tree.get(version).metrics
    if CHOSEN_CLASSES not in metrics or CHOSEN_ITEMS not in metrics:
        return None
    return HeadChoice(store.head_of(version).settings, metrics[CHOSEN_CLASSES], metrics[CHOSEN_ITEMS])


@dataclass(frozen=True, eq=False)
class Solved:
    """Sums and head of a new version, and what there is to say of it."""

    sums: ClassSums
    head: DiscriminantHead
    sample: Callable[[], Items]
    """Read the bounded sample of items by which settings are chosen."""
    figures: Mapping[str, float]


def solve(
    before: ClassSums,
    task: Training,
    learnt: Training | None,
    dim: int,
    *,
    earlier: HeadChoice | None = None,
    growth: float | None = None,
    of_task: ClassSums | None = None,
    chosen: HeadSettings | None = None,
    layer_lD: Float64s | None = None,
    trained: Collection[str] = (),
) -> Solved:
    """Return the head of what `before` sums and of the task's items.

    `learnt`: what is stored of the items in `before`. The settings are those of `earlier` while it holds (`growth`;
    under another trunk, None, it does not); else they are chosen by a bounded sample of `learnt` and of the task; the
    features of no others are read. `chosen`: settings to take in place of those.
    `dim`: the greatest length of the known part. `of_task`: the task's sums, where they are known. `layer_lD`: the
    linear layer that the trunk was trained behind, if any. `trained`: classes that it was trained on.
    """
    sums = before.plus(task.sums(before.lift) if of_task is None else of_task)

    @cache
    def sample() -> Items:
        return _sampled([task] if learnt is None else [learnt, task])

    if earlier is None or growth is None or not earlier.holds(sums, growth):
        if chosen is None:
            drawn, before_it = sample(), None if earlier is None else earlier.settings
            chosen = choose_head(
                sums,
                drawn.codes,
                list(drawn.classes),
                HeadSettings(dim=dim),
                earlier=before_it,
                layer_lD=layer_lD,
                trained=trained,
            )
        earlier = HeadChoice(chosen, float(len(sums)), float(sums.n_items))
    head = solve_head(sums, earlier.settings, layer_lD)
    figures = {
        **{key("head", name): float(asdict(head.settings)[name]) for name in CHOSEN},
        **{key("head", kind): float(head.settings.weighing == kind) for kind in get_args(Weighing)},
        key("head", "dim"): float(head.known_dim),
        key("head", "classes"): float(len(sums)),
        key("head", "items"): float(sums.n_items),
        CHOSEN_CLASSES: earlier.classes,
        CHOSEN_ITEMS: earlier.items,
    }
    return Solved(sums, head, sample, figures)


def _sampled(parts: Sequence[Training]) -> Items:
    """Return the sample of all items, in the order in which `sample_rows` draws it."""
    keys = [key for part in parts for key in part.keys]
    classes = [name for part in parts for name in part.classes]
    rows = sample_rows(keys, classes)
    ordered = np.sort(rows)  # as stored features are read
    found = [
        part.features(mine) for part, mine in zip(parts, split_rows(ordered, map(len, parts)), strict=True)
    ]
    codes = FeatureCodes.joined(found)[np.searchsorted(ordered, rows)]
    return Items([keys[row] for row in rows], [classes[row] for row in rows], codes)


def rows_as_items(store: Store, parts: Sequence[str], left: TrainingRows, forward: DriftMap) -> Items:
    """Return a stage's training items as they will be stored: of the rows that it has written (paths of the store)
    those that live still, and of `left`, all that live, those that it could not embed anew, which `forward` maps."""
    found = []
    for part in parts:
        with store.files.local(part) as path:
            rows = pq.read_table(path)
        found.append(rows.filter(pc.invert(rows["held_out"])))
    rows, living = pa.concat_tables(found), left.places
    is_living = [place in living for place in values(rows, "shard_id", "row")]
    rows = rows.filter(pa.array(is_living, pa.bool_()))
    anew = Items(rows["item_id"].to_pylist(), rows["class_name"].to_pylist(), features_of(rows, store.dim))
    names = frozenset(anew.keys)
    stayed = np.array([row for row, key in enumerate(left.keys) if key not in names], np.int64)
    if not len(stayed):
        return anew
    moved = left.under(forward).features(stayed)
    return Items(
        [*anew.keys, *(left.keys[row] for row in stayed)],
        [*anew.classes, *(left.classes[row] for row in stayed)],
        FeatureCodes.joined([anew.codes, moved]),
    )
