"""The plot of the README: recall as served over the stages of one stream, of three ways to go on.

python -m benchmarks.quality.front     # writes docs/assets/recall.svg from results/quality-flowers102.parquet
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import matplotlib
import numpy as np
import pyarrow.parquet as pq
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "benchmarks" / "results" / "quality-flowers102.parquet"
TARGET = REPOSITORY / "docs" / "assets" / "recall.svg"
LINES = (
    ("ours", "mapped", "stream_odml", "#0f766e", "-"),
    ("frozen_f0", "mapped", "never learning on", "#64748b", "--"),
    ("finetune", "stale", "fine-tuned, gallery stale", "#b45309", ":"),
)
"""Method, form of the gallery, and how the line is called and drawn."""


def curves(results: Path = RESULTS) -> dict[str, list[float]]:
    """Return for each line the mean Recall@1 of all classes so far over the seeds, stage by stage."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    wanted = {(method, form): name for method, form, name, _, _ in LINES}
    for row in pq.read_table(results).to_pylist():
        name = wanted.get((row["method"], row["gallery"]))
        if name is not None and (row["split"], row["metric"]) == ("union", "recall_at_1"):
            found[name, row["stage"]].append(row["value"])
    return {
        name: [float(np.mean(found[name, stage])) for stage in sorted(s for n, s in found if n == name)]
        for _, _, name, _, _ in LINES
    }


def draw(target: Path = TARGET) -> None:
    """Write the plot as SVG, the same bytes from the same figures."""
    with matplotlib.rc_context({"svg.hashsalt": "stream_odml", "svg.fonttype": "none", "font.size": 10}):
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.add_subplot()
        for (_, _, name, colour, style), values in zip(LINES, curves().values(), strict=True):
            stages = range(len(values))
            axes.plot(stages, values, style, marker="o", color=colour, linewidth=2)
            axes.annotate(
                f"{name} {values[-1]:.3f}",
                (len(values) - 1, values[-1]),
                xytext=(8, 0),
                textcoords="offset points",
                va="center",
                color=colour,
            )
        axes.set_xlim(-0.1, 6)
        axes.set_xticks(range(5), ["62 classes", "+10", "+10", "+10", "+10"])
        axes.set_ylabel("Recall@1 as served")
        axes.set_ylim(0, 1)
        axes.grid(axis="y", alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None})


if __name__ == "__main__":
    draw()
