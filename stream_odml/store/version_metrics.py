"""The metrics of a version: every name, its meaning and its type, in one place.

Stored as JSON with each row of `versions`: a field under its name, a field of several values under `name/part`. To add
a metric, add a field here, compute it in `pipeline/stage_run.py`, and show it in `cli/versions_table.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

SPLITS = ("old", "new", "union")
"""Classes of earlier tasks, of the stage's own task, and all of them."""
FORMS = ("served", "reextracted", "stale")
"""Gallery vectors as mapped and served, embedded anew by the new model, and left as they were."""
Scores = Mapping[str, float]


_TEXTS = ("kind", "held_out_set")
_BY_PART = {"by_part": True}
"""Marks a field whose values are stored one by one, under `name/part`."""


@dataclass(frozen=True, kw_only=True)
class VersionMetrics:
    """What a stage measured. None or an empty mapping: not measured."""

    kind: str | None = None
    """Of the stage: `trunk`, `head`, `embed`, `slow` or `renew`, see `pipeline/messages.py`."""
    recall_at_1: Scores = field(default_factory=dict, metadata=_BY_PART)
    """Recall@1 on held-out images by `split/form`; `old/estimated` (of a `slow` stage `union/estimated`) without
    held-out images, from stored vectors."""
    parent_recall_at_1: Scores = field(default_factory=dict, metadata=_BY_PART)
    """The parent's served Recall@1 on the same images, by split; `old/estimated` likewise. Of a `slow` stage the parent
    is the fast version: `union` is the floor that it had to pass."""
    queries: Scores = field(default_factory=dict, metadata=_BY_PART)
    """Held-out images that the comparison with the parent rests on, by split."""
    change_error: Scores = field(default_factory=dict, metadata=_BY_PART)
    """Standard error of the change from the parent's Recall@1, by split."""
    recall_at_1_of_task: Scores = field(default_factory=dict, metadata=_BY_PART)
    """Recall@1, re-extracted, by task."""
    recall_by_class: Scores = field(default_factory=dict)
    """Recall@1, as served, by class; one JSON object, as class names may hold a slash."""
    held_out_set: str | None = None
    """Which held-out images the figures are of, see `StreamConfig.held_out_set`: those of two sets do not compare."""
    forgetting: float | None = None
    """Mean over earlier tasks of the best Recall@1 so far, on the same held-out set, minus the one now."""
    drift: Scores = field(default_factory=dict, metadata=_BY_PART)
    """Sizes of the embedding's drift, see `StageOutcome.drift`."""
    task_spread: float | None = None
    """Variance of the task's images over that of stored vectors, under the parent."""
    images: float | None = None
    """Images that were learnt."""
    lost_images: float | None = None
    """Images of the task that could not be read."""
    classes: float | None = None
    """Classes of the images that were learnt, those that were known before included."""
    steps: float | None = None
    """Optimiser steps."""
    seconds: float | None = None
    """Duration of the stage."""
    boundary_to_first_step_s: float | None = None
    """Seconds from the end of the task to the first step."""
    closed_to_learnt_s: float | None = None
    """Seconds from when the task was closed until the version was committed."""
    head: Scores = field(default_factory=dict, metadata=_BY_PART)
    """A discriminant head as it was chosen: whether it has a part for known classes, width of the lift, shrinkages,
    scale and bonus of new items; 1 for how its directions are weighed (`ridge`, `posterior` or `equal`); dimensions,
    classes and items of its sums; `chosen_classes` and `chosen_items`: of the sums that these settings are for."""
    trunk: Scores = field(default_factory=dict, metadata=_BY_PART)
    """Whether a discriminant head's trunk is worth moving, see `trunk_gap`: `trained`, the share of the known classes
    that it was trained on; `from_nothing`, 1 where it began with no pretrained weights; `gap`, by how much less the
    others differ, where that was asked."""
    workers: float | None = None
    """Training workers at the end of the stage."""

    @classmethod
    def read(cls, stored: Mapping[str, Any]) -> VersionMetrics:
        """Read the metrics of a version as stored; names of no field, and what is no figure, are left out."""
        found: dict[str, Any] = {}
        for spec in fields(cls):
            if spec.metadata.get("by_part"):
                prefix = f"{spec.name}/"
                parts = {k.removeprefix(prefix): v for k, v in stored.items() if k.startswith(prefix)}
                found[spec.name] = _figures(parts)
            elif isinstance(value := stored.get(spec.name), Mapping) and spec.name == "recall_by_class":
                found[spec.name] = _figures(value)
            elif isinstance(value, str) if spec.name in _TEXTS else is_figure(value):
                found[spec.name] = value
        return cls(**found)

    def scalars(self) -> dict[str, float]:
        """Return every number by its stored name, but those of single classes: there may be thousands."""
        found: dict[str, float] = {}
        for spec in fields(self):
            value = getattr(self, spec.name)
            if spec.metadata.get("by_part"):
                found |= {f"{spec.name}/{part}": number for part, number in value.items()}
            elif isinstance(value, int | float):
                found[spec.name] = value
        return {
            name: float(n) for name, n in found.items() if isinstance(n, int | float) and math.isfinite(n)
        }

    def recall(self, split: str, form: str) -> float | None:
        """Return Recall@1 of a split in a form."""
        return self.recall_at_1.get(f"{split}/{form}")


def _figures(values: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in values.items() if is_figure(value)}


def is_figure(value: object) -> bool:
    """Return whether a stored value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


_NAMES = frozenset(spec.name for spec in fields(VersionMetrics))


def key(name: str, *parts: str) -> str:
    """Return the stored name of a metric, or of a part of it. Raises ValueError for a name that is no field."""
    if name not in _NAMES:
        raise ValueError(f"{name!r} is no metric of a version; add a field to VersionMetrics")
    return "/".join((name, *parts))
