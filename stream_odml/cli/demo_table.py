"""What the demo says at its beginning and its end: how its figures are to be read, and how far they can be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from stream_odml.cli.baselines import Baseline
from stream_odml.cli.console import figure, shown
from stream_odml.cli.producer import Category

HELD_OUT = 0.25
FEW_HELD_OUT = 100
"""Under so many held-out images recall is known to no better than a tenth or so."""


def doubts(categories: Sequence[Category], weights: Path | str | None) -> list[str]:
    """Return what keeps a demo on own images from telling much: too few of them, a net that knows no photographs."""
    images = sum(len(category.images) for category in categories)
    held_out = HELD_OUT * images
    lines = []
    if held_out < FEW_HELD_OUT:
        lines.append(
            f"{images} images of {len(categories)} categories leave about {held_out:.0f} held out: too few to measure "
            f"recall to better than {_two_errors(0.8, max(1.0, held_out)):.2f}. "
            f"Some {FEW_HELD_OUT / HELD_OUT:.0f} images are enough"
        )
    if weights is None:
        lines.append(
            "the small net starts from nothing and has a minute: for photographs give it pretrained weights, "
            "--weights FILE.safetensors (MobileNetV2 under the names of torchvision), or --backbone NAME"
        )
    return lines


def demo_table(rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, Baseline]) -> Table:
    """Return a table of the recall of each version on all classes so far, beside what the same stream would get."""
    table = Table(title="Recall@1 on held-out images of all classes so far", title_justify="left")
    table.add_column("version", no_wrap=True)
    for name in ("classes", "images", "stream_odml", "never learning on", "fine-tuned, gallery stale"):
        table.add_column(name, justify="right")
    for row in rows:
        other = baselines.get(row["version"], Baseline(None, None, 0))
        table.add_row(
            shown(row["version"]),
            str(row["classes"]),
            str(other.images or "-"),
            shown(figure(row["union_served"]), "bold"),
            figure(other.frozen),
            figure(other.finetuned),
        )
    return table


def reading(rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, Baseline]) -> list[str]:
    """Return lines that explain how to read the table."""
    known = [row for row in rows if row["union_served"] is not None]
    if not known:
        return ["nothing was measured: no version was learnt, or no class has two held-out images"]
    last = known[-1]
    other = baselines.get(last["version"], Baseline(None, None, 0))
    lines = []
    if len(known) > 1:
        lines.append(
            f"More classes are harder for every model: {known[0]['classes']} to tell apart at first, "
            f"{last['classes']} at last. Compare along a line, not down a column."
        )
    gains = [
        f"{last['union_served'] - value:+.3f} against {name}"
        for name, value in (("never learning on", other.frozen), ("fine-tuning", other.finetuned))
        if value is not None and len(known) > 1
    ]
    if gains:
        lines.append(f"With {last['classes']} classes: {', '.join(gains)}, on the same held-out images.")
    if other.images:
        error = _two_errors(last["union_served"], other.images)
        lines.append(f"Two standard errors with {other.images} images are {error:.3f}.")
    return lines


def summary(rows: Sequence[Mapping[str, Any]], baselines: Mapping[str, Baseline]) -> str | None:
    """Return what the whole demo showed, in one sentence; None where nothing was measured."""
    known = [row for row in rows if row["union_served"] is not None]
    if not known:
        return None
    last = known[-1]
    other = baselines.get(last["version"], Baseline(None, None, 0))
    others = [
        f"{value:.0%} {how}"
        for value, how in (
            (other.frozen, "had it never learnt on"),
            (other.finetuned, "had it been fine-tuned and its gallery left as it was"),
        )
        if value is not None and len(known) > 1
    ]
    first = f"it finds the right one first for {last['union_served']:.0%} of new images"
    tasks = len({row["task"] for row in known})
    reported = f"Of {last['classes']} classes, learnt in {tasks} tasks, {first}"
    return f"{reported}; {', '.join(others)}." if others else f"{reported}."


def _two_errors(recall: float, images: float) -> float:
    return 2.0 * float(np.sqrt(max(recall * (1.0 - recall), 1e-4) / images))
