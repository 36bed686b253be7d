"""From images to a stream of tasks: which images are learnt when, and which only ever measure.

Invariants: train, validation and test images of a class never meet; no image is learnt in two tasks.
"""

# n images of a class   T tasks

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from benchmarks.quality.data import Ints

Select = Literal["validation", "test"]
_BASE = re.compile(r"(?:(repeat|blurry)(?:@(0?\.\d+))?:)?(\d+)\+(\d+)\*(\d+)")
_GROUPS = re.compile(r"alphabets(?::(\d+)(?:\*(\d+))?)?")
_SHARES = {"repeat": 0.3, "blurry": 0.1}


@dataclass(frozen=True, eq=False)
class Split:
    """Indices of images, disjoint."""

    train: Ints
    validation: Ints
    test: Ints


@dataclass(frozen=True, eq=False)
class Task:
    """`images`: what is learnt. `arriving`: classes that no earlier task has shown."""

    images: Ints
    arriving: Ints


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks in order (the first is the base stage) and the images that measure."""

    tasks: tuple[Task, ...]
    measured: Ints
    """Indices of the evaluation images of every class that some task shows."""
    arrival: Ints
    """Of each measured image: the task with which its class arrives."""


def split_images(labels: Ints, seed: int) -> Split:
    """Of each class 40 % test, 15 % (two at least, where two are left to learn from) validation, the rest train."""
    random = np.random.default_rng((seed, 11))
    parts: dict[str, list[Ints]] = {"train": [], "validation": [], "test": []}
    for label in np.unique(labels):
        images = random.permutation(np.flatnonzero(labels == label))
        n_test = round(0.4 * len(images))
        rest = len(images) - n_test
        n_validation = min(max(2, round(0.15 * len(images))), rest - 2) if rest >= 4 else 0
        parts["test"].append(images[:n_test])
        parts["validation"].append(images[n_test : n_test + n_validation])
        parts["train"].append(images[n_test + n_validation :])
    return Split(**{name: np.sort(np.concatenate(arrays)) for name, arrays in parts.items()})


def build_stream(
    protocol: str, labels: Ints, class_names: Sequence[str], seed: int, select: Select
) -> Stream:
    """The stream that `protocol` names: `400+6*100`, `alphabets[:base[*stages]]` (by what stands before the
    `/` of a class name), `repeat[@share]:400+6*100` (a share of a stage's classes are old ones with unseen
    images), `blurry[@share]:400+6*100` (a share of each class's images comes with another task).

    `select`: measure on validation images, learning from train alone; or on test images, learning from both.
    ValueError for another protocol, or for more classes than there are.
    """
    split = split_images(labels, seed)
    learnt = (
        split.train if select == "validation" else np.sort(np.concatenate([split.train, split.validation]))
    )
    measured = split.validation if select == "validation" else split.test
    random = np.random.default_rng((seed, 12))
    kind, share, groups = _class_groups(protocol, class_names, random)
    by_class = {int(c): random.permutation(learnt[labels[learnt] == c]) for c in np.concatenate(groups)}
    if kind == "repeat":
        tasks = _repeated(groups, by_class, share, random)
    else:
        tasks = [np.concatenate([by_class[int(c)] for c in group]) for group in groups]
    if kind == "blurry":
        tasks = _blurred(tasks, share, random)
    stream = _stream(tasks, labels, measured)
    for t, task in enumerate(stream.tasks):
        if not len(task.images):
            raise ValueError(
                f"protocol {protocol!r} leaves task {t} without an image; ask for fewer, larger tasks"
            )
    first = labels[stream.measured[stream.arrival == 0]]
    if not (np.bincount(first, minlength=1) > 1).any():
        raise ValueError(
            f"no class of the first task has two {select} images, so nothing can be measured; "
            "40 % of a class test, 15 % validate: more images a class are needed"
        )
    return stream


def _class_groups(
    protocol: str, class_names: Sequence[str], random: np.random.Generator
) -> tuple[str, float, list[Ints]]:
    match = _BASE.fullmatch(protocol)
    if match:
        kind, share = match[1] or "disjoint", match[2]
        base, stages, size = int(match[3]), int(match[4]), int(match[5])
        if base < 2 or size < 2:
            raise ValueError(
                f"protocol {protocol!r}: tasks of {base} and of {size} classes; each needs 2 or more"
            )
        if base + stages * size > len(class_names):
            raise ValueError(
                f"protocol {protocol!r} needs {base + stages * size} classes, there are {len(class_names)}; "
                "ask for fewer or smaller tasks"
            )
        classes = random.permutation(len(class_names)).astype(np.int64)
        bounds = [0, base, *(base + size * (i + 1) for i in range(stages))]
        groups = [classes[a:b] for a, b in itertools.pairwise(bounds)]
        return kind, float(share) if share else _SHARES.get(kind, 0.0), groups
    match = _GROUPS.fullmatch(protocol)
    if not match:
        raise ValueError(
            f"protocol {protocol!r}; expected base+k*n, alphabets[:base[*stages]], "
            "repeat[@share]:base+k*n or blurry[@share]:base+k*n"
        )
    return "alphabets", 0.0, _by_prefix(class_names, match[1], match[2], random)


def _by_prefix(
    class_names: Sequence[str], base: str | None, stages: str | None, random: np.random.Generator
) -> list[Ints]:
    prefixes = np.asarray([name.split("/")[0] for name in class_names])
    order = random.permutation(np.unique(prefixes))
    n_base = int(base) if base else max(1, round(0.4 * len(order)))
    n_stages = int(stages) if stages else len(order) - n_base
    if n_base < 1 or n_stages < 1 or n_base + n_stages > len(order):
        raise ValueError(
            f"{n_base} + {n_stages} alphabets, of {len(order)} that stand before the '/' of a class_name; "
            "ask for 1 + 1 at least, and for no more than there are"
        )
    first = np.flatnonzero(np.isin(prefixes, order[:n_base])).astype(np.int64)
    rest = order[n_base : n_base + n_stages]
    return [first, *(np.flatnonzero(prefixes == prefix).astype(np.int64) for prefix in rest)]


def _repeated(
    groups: list[Ints], by_class: dict[int, Ints], share: float, random: np.random.Generator
) -> list[Ints]:
    """Each stage shows old classes again, `share` as many as it has new ones. The images of a class are
    dealt out among its appearances, so that none is seen twice."""
    shown: list[list[int]] = [[int(c) for c in group] for group in groups]
    for t in range(1, len(groups)):
        old = [
            c for c in np.concatenate(groups[:t]) if len(by_class[int(c)]) >= 4 * (1 + _times(shown, int(c)))
        ]
        count = min(round(share * len(groups[t])), len(old))
        shown[t] += [int(c) for c in random.choice(old, count, replace=False)]
    parts = {c: iter(np.array_split(images, _times(shown, c))) for c, images in by_class.items()}
    return [np.concatenate([next(parts[c]) for c in classes]) for classes in shown]


def _times(shown: list[list[int]], c: int) -> int:
    return sum(c in classes for classes in shown)


def _blurred(tasks: list[Ints], share: float, random: np.random.Generator) -> list[Ints]:
    """`share` of each task's images comes with another task, drawn evenly."""
    home = np.concatenate([np.full(len(images), t) for t, images in enumerate(tasks)])
    images = np.concatenate(tasks)
    stray = random.random(len(images)) < share
    shift = random.integers(1, max(len(tasks), 2), len(images))
    comes = np.where(stray, (home + shift) % len(tasks), home)
    return [images[comes == t] for t in range(len(tasks))]


def _stream(tasks: list[Ints], labels: Ints, measured: Ints) -> Stream:
    first: dict[int, int] = {}
    stages = []
    for t, images in enumerate(tasks):
        arriving = [int(c) for c in np.unique(labels[images]) if int(c) not in first]
        first |= dict.fromkeys(arriving, t)
        stages.append(Task(np.sort(images), np.asarray(arriving, np.int64)))
    measured = measured[np.isin(labels[measured], list(first))]
    arrival = np.asarray([first[int(c)] for c in labels[measured]], np.int64)
    return Stream(tuple(stages), measured, arrival)
