"""One change of a gallery of made-up vectors, in a process that may be killed and begun again:

python -m benchmarks.doors.changing ROOT NUMBER SEED
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from benchmarks.doors.made import land_and_learn, means, vector_stream, vectors
from stream_odml.pipeline.first_version import open_root
from stream_odml.store.sums import forget_in_sums
from stream_odml.store.writer import Writer

DIM, CLASSES, NEW, EACH = 128, 200, 5, 8
"""Classes at first; classes of each further task, and items of each of them."""


def first(root: str, rows: int, seed: int) -> None:
    """Land so many rows of the first classes, and learn them."""
    labels = np.arange(rows) % CLASSES
    names = [f"class {label}" for label in labels]
    config = vector_stream(Path(root), DIM)
    open_root(config)
    land_and_learn(config, "first", names, vectors(means(CLASSES, DIM, seed), labels, seed))


def change(root: str, number: int, seed: int) -> None:
    """Learn a new task (another space), or erase an item (other rows), in turn."""
    if number % 2 == 0:
        labels = CLASSES + NEW * number + np.repeat(np.arange(NEW), EACH)
        h = vectors(means(int(labels[-1]) + 1, DIM, seed), labels, number)
        land_and_learn(vector_stream(Path(root), DIM), f"task-{number}", [f"class {c}" for c in labels], h)
        return
    writer = Writer.claim(root, "benchmark", takeover=True)
    writer.forget("item", f"first/{number}", 1)
    forget_in_sums(writer)
    writer.release()


if __name__ == "__main__":
    change(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
