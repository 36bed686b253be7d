"""What the savings of a step cost in recall: the same small stream of real images learnt with and without them."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path

from benchmarks.common import Report, git_commit
from benchmarks.quality.data import load_images
from benchmarks.quality.figures import flat_figures
from benchmarks.quality.methods import Method
from benchmarks.quality.rows import RowFile
from benchmarks.quality.study import Run, Study
from benchmarks.training.naive import naive_settings
from stream_odml.learn.settings import EmbedderSpec, StageSettings

PROTOCOL = "200+3*60"
BASE_STEPS, STEPS = 300, 120
SHOWN = ("last_r1_mapped", "last_r1_reextracted")


def measure_recalls(report: Report, data: Path | None, seeds: list[int]) -> None:
    """Recall@1 of the union after the last stage, as served (mapped) and re-extracted, for both forms of the step
    and for the default, which adds wide views."""
    if data is None:
        report.say("recall: no --data, nothing measured")
        return
    shrink = 8 if report.quick else 1
    common = StageSettings(base_steps=BASE_STEPS // shrink, stage_steps=STEPS // shrink)
    plain = replace(common, weight_composites=0.0)  # the steps whose cost is compared have no wide views
    methods = [
        Method("mutual", "ours", plain),
        Method("naive_mutual", "ours", naive_settings(plain)),
        Method("ours", "ours", common),
    ]
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        spec = EmbedderSpec("conv4", 128, 28)
        images = load_images(data, spec.image_size, work)
        study = Study(
            images, PROTOCOL, "test", spec, common, work, RowFile(work / "rows"), git_commit(), report.quick
        )
        for seed in seeds:
            for method in methods:
                report.say(f"recall: {method.name}, seed {seed}")
                Run(study, method, seed, lambda *_: None).go()
        rows = study.rows.read()
    figures = flat_figures(rows, [method.name for method in methods])
    for method in methods:
        for name in SHOWN:
            report.figure(f"{method.name}/{name}", figures[f"{method.name}/{name}"])
    report.rows += [
        {"part": "recall", **row}
        for row in rows
        if row["split"] == "union" and row["metric"] == "recall_at_1" and row["gallery"] != "stale"
    ]
