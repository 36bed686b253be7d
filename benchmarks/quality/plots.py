"""Plots as PNG bytes: recall over stages, served against re-extracted, forgetting, compatibility.

Matplotlib is loaded by the first plot: a run that measures draws none.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.quality.figures import Curves

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PANELS = (
    ("union", "reextracted", "all classes, re-extracted"),
    ("union", "mapped", "all classes, mapped (what a user is served)"),
    ("union", "stale", "all classes, stale"),
    ("old", "reextracted", "old classes, re-extracted"),
    ("new", "reextracted", "new classes, re-extracted"),
    ("base_alone", "reextracted", "base classes alone, re-extracted: forgetting"),
)


def recall_plots(table: Curves, methods: Sequence[str]) -> Iterator[bytes]:
    """Six panels of Recall@1 over stages, and a scatter of the last stage's two recalls."""
    figure = _figure(13, 8)
    axes = figure.subplots(2, 3, sharex=True)
    for panel, (split, form, title) in zip(axes.flat, _PANELS, strict=True):
        for i, method in enumerate(methods):
            stages, values = _mean(table.get((method, split, form, "recall_at_1"), {}))
            if stages:
                panel.plot(stages, values, marker=".", label=method, **_look(i))
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("stage")
        panel.locator_params(axis="x", integer=True)
    handles = {
        label: line
        for panel in axes.flat
        for line, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), fontsize=8, loc="outside right upper")
    yield _png(figure)
    yield _png(_served(table, methods))


def _look(i: int) -> dict[str, Any]:
    """Of the i-th method: its colour, and another kind of line where the ten colours come again; the first, which the
    others are compared with, lies on top."""
    return {
        "color": f"C{i % 10}",
        "linestyle": ("-", "--", ":")[i // 10 % 3],
        "linewidth": 1.4 if i else 2.4,
        "zorder": 2 if i else 3,
    }


def heat_maps(table: Curves, methods: Sequence[str]) -> Iterator[bytes]:
    """Queries by version t (column) against a gallery by version k (row), mapped, of the base classes."""
    for method in methods:
        cells = {
            (int(split.split()[1]), int(split.split()[2])): _mean(by_seed)[1][-1]
            for (name, split, form, _), by_seed in table.items()
            if name == method and form == "mapped" and split.startswith("compatibility")
        }
        if cells:
            yield _png(_heat_map(method, cells))


def _heat_map(method: str, cells: Mapping[tuple[int, int], float]) -> Figure:
    size = 1 + max(t for _, t in cells)
    grid = np.full((size, size), np.nan)
    for at, value in cells.items():
        grid[at] = value
    figure = _figure(5, 4)
    axes = figure.subplots()
    image = axes.imshow(grid, vmin=float(np.nanmin(grid)) - 0.01)
    axes.set(xlabel="queries by version", ylabel="gallery by version", title=f"{method}: R@1, base, mapped")
    figure.colorbar(image)
    return figure


def _served(table: Curves, methods: Sequence[str]) -> Figure:
    figure = _figure(6, 5)
    axes = figure.subplots()
    measured = {
        method: [
            _mean(table.get((method, "union", form, "recall_at_1"), {})) for form in ("reextracted", "mapped")
        ]
        for method in methods
    }
    last = max((stages[-1] for forms in measured.values() for stages, _ in forms if stages), default=0)
    for i, (method, forms) in enumerate(measured.items()):
        if all(stages and stages[-1] == last for stages, _ in forms):
            (_, there), (_, here) = forms
            marker = "os^"[i // 10 % 3]
            axes.plot(there[-1], here[-1], marker, color=f"C{i % 10}", zorder=2 if i else 3, label=method)
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color="0.7", linewidth=1)
    axes.set(xlabel="re-extracted R@1, last stage", ylabel="mapped R@1, last stage")
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8)
    return figure


def _mean(by_seed: Mapping[int, Mapping[int, float]]) -> tuple[list[int], list[float]]:
    """Stages, and the mean over the seeds that have come furthest: one that is under way would cut the others short."""
    if not by_seed:
        return [], []
    last = max(max(values) for values in by_seed.values())
    furthest = [values for values in by_seed.values() if max(values) == last]
    stages = sorted(set.intersection(*(set(values) for values in furthest)))
    return stages, [float(np.mean([values[t] for values in furthest])) for t in stages]


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: Figure) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)
    buffer = io.BytesIO()
    writer: Any = figure.savefig
    writer(buffer, format="png", dpi=90)
    return buffer.getvalue()
