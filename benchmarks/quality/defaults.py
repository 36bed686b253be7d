"""The defaults that validation chose, derived from its rows: python -m benchmarks.quality.defaults

Of each setting the value with the best mean over streams and seeds, unless the standing default is within MARGIN of it.
A test compares them with the settings, and the table with the page of the study.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow.parquet as pq

from benchmarks.quality.figures import curves, seed_figures
from stream_odml.learn.discriminant import HeadSettings
from stream_odml.learn.head_choice import LAYERS
from stream_odml.learn.settings import EmbedderSpec, StageSettings
from stream_odml.learn.weighing import Weighing

RESULTS = Path(__file__).resolve().parents[1] / "results"
MARGIN = 0.005


@dataclass(frozen=True)
class Choice:
    """A setting, the methods that differ in nothing else, and the figure by which they are compared."""

    setting: str
    default: Any
    methods: Mapping[str, str]
    """Value -> method, the default among them."""
    figure: str
    files: Sequence[str]
    stands: str = ""
    """Why the default stands although the rows choose another."""


_PHOTOGRAPHS = ("heads-flowers102", "heads-grocery81")
_ALL_PHOTOGRAPHS = (*_PHOTOGRAPHS, "heads-flowers102-small", "heads-grocery81-small")
_DRAWINGS = ("heads-omniglot-400",)
_HEADS = (*_PHOTOGRAPHS, *_DRAWINGS)
_SERVED, _UNSEEN = "avg_inc_r1_mapped", "unseen_alone_r1_mapped"
_SOLVED = EmbedderSpec(head="discriminant")
CHOICES = (
    Choice(
        "HeadSettings.dim", HeadSettings().dim, {"64": "dim64", "128": "standing", "256": "dim256"}, _SERVED, _HEADS
    ),
    Choice(
        "HeadSettings.weight", HeadSettings().weight,
        {"1.0": "weight1.0", "2.0": "standing", "4.0": "weight4.0"}, _SERVED, _HEADS,
    ),
    Choice(
        "HeadSettings.shrinkage", HeadSettings().shrinkage,
        {"0.5": "shrinkage0.5", "0.8": "shrinkage0.8", "0.95": "shrinkage0.95"}, _SERVED, _HEADS,
    ),
    Choice(
        "HeadSettings.weighing", HeadSettings().weighing,
        {name: f"weighing{name}" for name in get_args(Weighing)}, _SERVED, _ALL_PHOTOGRAPHS,
    ),
    Choice(
        "HeadSettings.new_shrinkage", HeadSettings().new_shrinkage,
        {"0.5": "new_shrinkage0.5", "0.8": "new_shrinkage0.8"}, _UNSEEN, _PHOTOGRAPHS,
    ),
    Choice(
        "HeadSettings.layer, where it helps", LAYERS[1],
        {"0.25": "layer0.25", "0.5": "layer0.5", "1.0": "layer1.0"}, _SERVED, _DRAWINGS,
    ),
    Choice(
        "model.lift, beside fewer than 512 features", _SOLVED.lift_of(256), {"0": "lift0", "2048": "standing"},
        _SERVED, _DRAWINGS,
    ),
    Choice(
        "model.lift, beside 512 and more", _SOLVED.lift_of(1280), {"0": "standing", "2048": "lift2048"},
        _SERVED, _ALL_PHOTOGRAPHS,
    ),
    Choice(
        "weight_hold", StageSettings().weight_hold, {"50.0": "hold50", "10.0": "hold10"}, _SERVED,
        ("validation-flowers102-hold",),
    ),
    Choice(
        "weight_hold_renewed", StageSettings().weight_hold_renewed, {"10.0": "renewed10", "3.0": "renewed3"}, _SERVED,
        ("validation-flowers102-renewed", "validation-grocery81-renewed"),
    ),
    Choice(
        "renewed_learning_rate_factor", StageSettings().renewed_learning_rate_factor, {"1.0": "rate1", "3.0": "rate3"},
        _SERVED, ("validation-alphabets-small-rate", "validation-grocery81-rate"),
    ),
    Choice(
        "learning.trunk", StageSettings().trunk, {"auto": "ours", "frozen": "exact_frozen"}, _SERVED,
        ("validation-flowers102-tenth", "validation-grocery81-tenth"),
    ),
)  # fmt: skip
UNCHOSEN: Mapping[str, tuple[Any, str]] = {
    "HeadSettings.new_bonus": (
        HeadSettings().new_bonus,
        "each stream chooses its own; this one stands where nothing can be left out",
    ),
    "HeadSettings.bonus_among_all": (
        HeadSettings().bonus_among_all,
        "each stream chooses its own: what known classes can spare, or what serves both; none where nothing tells",
    ),
    "choice_growth": (StageSettings().choice_growth, "a matter of time, not of recall"),
}
"""Defaults that no rows have chosen: the value, and what it rests on."""


def measured(choice: Choice) -> dict[str, tuple[float, int]]:
    """Return value -> (mean of the figure over streams and seeds, how many), of what has been measured."""
    found: dict[str, list[float]] = defaultdict(list)
    for name in choice.files:
        path = RESULTS / f"{name}.parquet"
        if not path.exists():
            continue
        rows = pq.read_table(path).to_pylist()
        if any(row["select"] != "validation" for row in rows):
            raise ValueError(
                f"{path} has rows of test images; a default is chosen on validation images alone"
            )
        table = curves(rows)
        for value, method in choice.methods.items():
            found[value] += seed_figures(table, method).get(choice.figure, {}).values()
    return {value: (float(np.mean(values)), len(values)) for value, values in found.items() if values}


def chosen(choice: Choice) -> str:
    """Return the value that the rows choose. ValueError where a value was measured on fewer streams than others."""
    by_value = measured(choice)
    counts = {count for _, count in by_value.values()}
    if by_value.keys() != choice.methods.keys() or len(counts) != 1:
        raise ValueError(
            f"{choice.setting}: measured are {by_value}, expected all of {list(choice.methods)} alike"
        )
    best = max(by_value, key=lambda value: by_value[value][0])
    standing = str(choice.default)
    stands = standing in by_value and by_value[standing][0] >= by_value[best][0] - MARGIN
    return standing if stands else best


def table() -> str:
    """Return the defaults as a table in Markdown."""
    lines = [
        "| setting | default | recall of each value, mean over streams and seeds | rows |",
        "|---" * 4 + "|",
    ]
    for choice in CHOICES:
        by_value = measured(choice)
        cells = ", ".join(f"{value}: {mean:.3f}" for value, (mean, _) in by_value.items())
        count = max(n for _, n in by_value.values())
        what = "unseen classes" if choice.figure == _UNSEEN else "served"
        why = f"; the default stands: {choice.stands}" if choice.stands else ""
        lines.append(f"| `{choice.setting}` | {choice.default} | {what}: {cells}{why} | {count} |")
    for setting, (value, why) in UNCHOSEN.items():
        lines.append(f"| `{setting}` | {'null' if value is None else value} | not chosen by rows: {why} | |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table())
