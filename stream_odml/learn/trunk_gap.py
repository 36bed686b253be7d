"""Whether a trunk is worth moving: how many of the known classes it was not trained on, and how much worse it tells
them apart than those that it was.

Both are read from a sample of stored features. Protects: no image is read and no network is run to find out.
"""

# n items   D trunk feature   C classes

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np

from stream_odml.learn.feature_codes import FeatureCodes
from stream_odml.learn.lift import Float64s, Lift
from stream_odml.learn.settings import StageSettings

MAX_TRAINED = 0.9
"""Share of the known classes that the trunk was trained on, above which it stays: so it moves each time that a tenth of
them are new to it, and the number of its moves, each of which every stored feature has to follow, grows like the
logarithm of theirs."""
MIN_GAP = 0.08
"""Least gap that is worth a stage of a trunk that began with pretrained weights. Seen before anything was trained, by
the luck of a dozen classes: up to 0.07; after a base stage on photographs: 0.12 and 0.19. One that began with nothing
is not asked: every class that it meets teaches it what serves all, also where it tells new ones apart as well as others
(1,000 characters, 400 of them trained on: a gap of 0.03, and 0.02 of recall to be won)."""

AGAIN = 1.5
"""Times as many classes, or as many images, as a refused stage had that have to wait until they are tried again
together: more of them teach more, and the number of tries grows like the logarithm of theirs."""


def trained_share(names: Collection[str], trained: Collection[str]) -> float:
    """Return the share of the known classes that the trunk was trained on; 1 of none."""
    return len(set(names) & set(trained)) / len(names) if names else 1.0


def trunk_gap(features: FeatureCodes, classes: Sequence[str], trained: Collection[str]) -> float | None:
    """Return the intraclass correlation of the classes that the trunk was trained on minus that of all others; None
    without two of either with two items."""
    mine_n = np.array([name in trained for name in classes], bool)
    labels_n = np.unique(np.array(classes, np.str_), return_inverse=True)[1]
    phi_nD = Lift(features.dim).apply(features.decode()).astype(np.float64)
    mine, others = (between_share(phi_nD[rows], labels_n[rows]) for rows in (mine_n, ~mine_n))
    return None if mine is None or others is None else mine - others


def between_share(phi_nD: Float64s, labels_n: np.typing.NDArray[np.integer]) -> float | None:
    """Return the share of the variance that lies between classes, in 0..1 and without the part that classes of few
    items owe to chance (one-way analysis of variance); None without two classes and an item more than classes."""
    names, row_n, count_C = np.unique(labels_n, return_inverse=True, return_counts=True)
    n, C = len(phi_nD), len(names)
    if C < 2 or n <= C:
        return None
    sums_CD = np.zeros((C, phi_nD.shape[1]))
    np.add.at(sums_CD, row_n, phi_nD)
    of_means = float((np.square(sums_CD).sum(axis=1) / count_C).sum())
    total, whole = float(np.square(phi_nD).sum()), float(np.square(phi_nD.sum(axis=0)).sum()) / n
    within = max(total - of_means, 0.0) / (n - C)
    each = (n - float(np.square(count_C).sum()) / n) / (C - 1)
    between = max(((of_means - whole) / (C - 1) - within) / each, 0.0)
    return between / (between + within) if between + within > 0 else None


def trunk_need(
    known: Collection[str],
    trained: Collection[str],
    sample: Callable[[], tuple[FeatureCodes, Sequence[str]]],
    *,
    pretrained: bool,
) -> dict[str, float]:
    """Return what `is_worth_moving` asks: `trained`, the share of the known classes that the trunk was trained on;
    `from_nothing`, 1 where its weights did not begin as `pretrained` ones; and `gap`, absent where it would not change
    the answer or cannot be told. `sample` reads features of known classes, and their names; it is called only where the
    rest does not answer."""
    need = {"trained": trained_share(known, trained)}
    if not pretrained:
        return {**need, "from_nothing": 1.0}
    if is_worth_moving({**need, "gap": float("inf")}):
        gap = trunk_gap(*sample(), trained)
        need |= {} if gap is None else {"gap": gap}
    return need


def is_worth_moving(need: Mapping[str, float]) -> bool:
    """Return whether a stage of the trunk may win something, by what `trunk_need` returned."""
    if need.get("trained", 1.0) > MAX_TRAINED:
        return False
    return need.get("from_nothing", 0.0) > 0 or need.get("gap", 0.0) >= MIN_GAP


def is_tried_again(refused: Mapping[str, int], both: Mapping[str, int], known: Collection[str]) -> bool:
    """Return whether the images by class that a trunk did not pass the floor by are tried again, as there are enough
    more with those that wait: of classes that are not `known` to the trunk, or images of any."""
    new = len(refused.keys() - set(known))
    if new and len(both.keys() - set(known)) >= AGAIN * new:
        return True
    return sum(both.values()) >= AGAIN * sum(refused.values())


def of_tasks(settings: StageSettings, tasks: int) -> StageSettings:
    """Return the settings of a stage that moves the trunk by so many tasks at once: with as many steps as they would
    have one by one."""
    return replace(settings, stage_steps=settings.stage_steps * max(tasks, 1))
