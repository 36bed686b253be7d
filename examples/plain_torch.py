"""The learner in plain torch: three tasks of new classes, and a gallery that is never embedded again.

No Ray, no store: what `stream_odml.learn` needs is pixels, labels and a loop. Run it:

    python examples/plain_torch.py                  # characters drawn from fonts
    python examples/plain_torch.py photos/          # a folder with a folder of images for each class
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from stream_odml.ingest.decode import decode_image
from stream_odml.ingest.glyphs import glyph_categories
from stream_odml.ingest.sampler import PKSampler
from stream_odml.learn.bank import ClassBank
from stream_odml.learn.embedder import build_embedder, embed
from stream_odml.learn.evaluation import Retrieval, recall_at_k
from stream_odml.learn.settings import EmbedderSpec, method_settings
from stream_odml.learn.stage import StageLearner

SIDE, DIM, MAX_PIXELS = 32, 64, 50_000_000


@dataclass(frozen=True)
class Task:
    """Images of classes that no earlier task had: pixels uint8 [n, side, side, 3], a label 0 .. classes - 1 each."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: list[str]


def tasks_of(classes: Sequence[tuple[str, Sequence[bytes]]], per_task: int, side: int = SIDE) -> list[Task]:
    """Return tasks of `per_task` classes each, in order; a class that would be left alone, which teaches no metric,
    comes with those before it. Raises ValueError for fewer than two, and BadImage for bytes that are no image."""
    if per_task < 2 or len(classes) < 2:
        raise ValueError(f"tasks of {per_task} of {len(classes)} classes; each needs two or more")
    found = []
    starts = range(0, len(classes) - 1, per_task)
    for start, end in zip(starts, [*starts[1:], len(classes)], strict=True):
        some = classes[start:end]
        pixels = [decode_image(image, side, MAX_PIXELS) for _, images in some for image in images]
        labels = np.repeat(np.arange(len(some)), [len(images) for _, images in some])
        found.append(Task(np.stack(pixels), labels, [name for name, _ in some]))
    return found


def learn_stream(tasks: Sequence[Task], method: str = "distilled", **changes: object) -> Iterator[float]:
    """Learn one task after another, and yield Recall@1 over every image so far, each against all others.

    An image is embedded once, by the model that learnt it; then drift maps move its vector from model to model.
    """
    settings = replace(method_settings(method), **changes)  # type: ignore[arg-type]
    side = tasks[0].pixels.shape[1]
    model, bank = build_embedder(EmbedderSpec(dim=DIM, image_size=side), seed=0), ClassBank.empty(DIM)
    gallery, owners = np.empty((0, DIM), np.float32), np.empty(0, np.int64)
    for number, task in enumerate(tasks):
        learner = StageLearner(
            settings, model, bank, n_classes=len(task.names), version_id=f"v{number + 1}", seed=number
        )
        sampler = PKSampler(task.labels, settings.classes_per_batch, settings.images_per_class, seed=number)
        for step in range(learner.total_steps):
            rows = sampler.batch(step)
            learner.step(torch.from_numpy(task.pixels[rows]), torch.from_numpy(task.labels[rows]))
        outcome = learner.finish([(task.pixels, task.labels, np.arange(len(task.labels)))], task.names)
        model, bank = outcome.student, outcome.bank
        gallery = np.concatenate([outcome.forward.apply(gallery), embed(model, task.pixels)])
        owners = np.concatenate([owners, task.labels + (owners.max() + 1 if len(owners) else 0)])
        yield recall_at_k(Retrieval.leave_one_out(gallery, owners))[1]


def images_under(folder: Path) -> list[tuple[str, list[bytes]]]:
    """Return class and images of every folder in `folder` that has some; hidden files are passed over."""
    classes = sorted(one for one in folder.iterdir() if one.is_dir())
    images = [
        (one.name, [file.read_bytes() for file in sorted(one.iterdir()) if is_shown(file)]) for one in classes
    ]
    return [(name, found) for name, found in images if found]


def is_shown(path: Path) -> bool:
    """Return whether a path is a file that is not hidden."""
    return path.is_file() and not path.name.startswith(".")


def main(
    folder: str | None = None,
    *,
    classes: int = 60,
    base_steps: int = 300,
    stage_steps: int = 100,
    side: int = SIDE,
) -> None:
    """Learn three tasks, or fewer of few classes, and print what is found after each."""
    drawn = [(c.class_name, c.images) for c in islice(glyph_categories(seed=0, images=12), classes)]
    found = drawn if folder is None else images_under(Path(folder))
    tasks = tasks_of(found, max(2, -(-len(found) // 3)), side)
    recalls = learn_stream(tasks, base_steps=base_steps, stage_steps=stage_steps, classes_per_batch=8)
    for number, recall in enumerate(recalls, start=1):
        known = sum(len(task.names) for task in tasks[:number])
        print(f"task {number}: {known} classes, Recall@1 {recall:.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:2])
